//! wasmk-net
