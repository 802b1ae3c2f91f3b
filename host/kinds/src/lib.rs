//! What data cannot say about each kind: defaults, validation, printed columns. Pure.
