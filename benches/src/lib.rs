//! Figures of the program and its parts, each beside the number promised: see `benches/`.
