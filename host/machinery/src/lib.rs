//! wasmk-machinery
