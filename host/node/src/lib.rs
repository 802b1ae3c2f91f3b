//! wasmk-node
