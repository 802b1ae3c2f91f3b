//! wasmk
