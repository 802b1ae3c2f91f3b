//! wasmk-controllers
