//! Kinds of Knative Serving that wasmk serves itself.
