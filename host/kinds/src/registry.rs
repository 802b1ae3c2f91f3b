//! Which behaviour a group and kind has.

use crate::Kind;

/// A kind with nothing special.
struct Neutral;

impl Kind for Neutral {}

/// The behaviour of that kind; a neutral one when there is nothing special about it.
pub fn kind(_group: &str, _kind: &str) -> &'static dyn Kind {
    &Neutral
}
