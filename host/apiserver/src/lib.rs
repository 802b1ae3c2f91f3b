//! wasmk-apiserver
