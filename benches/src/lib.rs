//! wasmk-benches
