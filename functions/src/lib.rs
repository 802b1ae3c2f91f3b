//! wasmk-functions
