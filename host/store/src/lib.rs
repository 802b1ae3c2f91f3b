//! A revisioned key-value store with watches. Knows bytes, not kinds.
