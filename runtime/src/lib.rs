//! wasmk-runtime
