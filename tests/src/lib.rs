//! wasmk-tests
