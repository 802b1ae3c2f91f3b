//! Names of generated children.
//!
//! Upstream draws the five letters at random. Here they are a permutation of a counter,
//! keyed by the owner: names look the same, but two controllers that run by mistake pick
//! the same next name, and the second create fails instead of making one pod too many.

use sha2::{Digest, Sha256};

/// Letters and digits of generated names: no vowels, nothing easily mistaken.
const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
const LENGTH: usize = 5;
/// 27⁵ names per owner.
const SPACE: u64 = 14_348_907;
/// Neither is a multiple of 3, so multiplying permutes the space.
const STEP: u64 = 7_368_787;
const UNSTEP: u64 = inverse(STEP);
/// Counters above are taken for names somebody else has chosen.
const MAX_SLOT: u64 = 4_000_000;
/// Longest prefix, so that a name stays below 63 characters.
const MAX_PREFIX: usize = 58;

const fn inverse(a: u64) -> u64 {
    // Euler: a^(φ(m)-1), with φ(3¹⁵) = 2 × 3¹⁴.
    let (mut result, mut base, mut power) = (1, a % SPACE, SPACE / 3 * 2 - 1);
    while power > 0 {
        if power & 1 == 1 {
            result = result * base % SPACE;
        }
        base = base * base % SPACE;
        power >>= 1;
    }
    result
}

/// Names of one owner's children, in order.
#[derive(Clone, Debug)]
pub struct Names {
    prefix: String,
    offset: u64,
}

impl Names {
    /// Names that begin with `base-`, keyed by the owner's uid.
    pub fn new(base: &str, owner_uid: &str) -> Self {
        let base: String = base.chars().take(MAX_PREFIX - 1).collect();
        Self { prefix: format!("{base}-"), offset: number(owner_uid) % SPACE }
    }

    /// The name of that place in the order.
    pub fn name(&self, slot: u64) -> String {
        let mut rest = ((slot % SPACE) * STEP + self.offset) % SPACE;
        let mut letters = [0; LENGTH];
        for letter in &mut letters {
            *letter = ALPHABET[(rest % 27) as usize];
            rest /= 27;
        }
        format!("{}{}", self.prefix, String::from_utf8_lossy(&letters))
    }

    /// The place of a name, when it is one of these.
    pub fn slot(&self, name: &str) -> Option<u64> {
        let letters = name.strip_prefix(&self.prefix)?;
        if letters.len() != LENGTH {
            return None;
        }
        let mut value = 0;
        for letter in letters.bytes().rev() {
            value = value * 27 + ALPHABET.iter().position(|a| *a == letter)? as u64;
        }
        let slot = (value + SPACE - self.offset) % SPACE * UNSTEP % SPACE;
        (slot < MAX_SLOT).then_some(slot)
    }

    /// The place after all of these names.
    pub fn next<'a>(&self, taken: impl IntoIterator<Item = &'a str>) -> u64 {
        taken.into_iter().filter_map(|name| self.slot(name)).max().map_or(0, |slot| slot + 1)
    }
}

/// A number that depends on every part of `text`.
pub fn number(text: &str) -> u64 {
    let digest = Sha256::digest(text.as_bytes());
    u64::from_be_bytes(digest[..8].try_into().expect("a digest has more than eight bytes"))
}

/// A short hash in the letters of generated names, up to ten of them.
pub fn hash(text: &str) -> String {
    // As upstream: decimal digits of 32 bits, each shown as a safe letter.
    let value = (number(text) >> 32) as u32;
    value.to_string().bytes().map(|digit| char::from(ALPHABET[usize::from(digit) % 27])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_back_to_their_place() {
        let names = Names::new("web", "uid-1");
        for slot in (0..2000).chain([MAX_SLOT - 1]) {
            assert_eq!(names.slot(&names.name(slot)), Some(slot));
        }
        assert_eq!(names.slot("web-aaaaa"), None);
        assert_eq!(names.slot("other-bbbbb"), None);
        let taken = [names.name(0), names.name(7), "web-x".to_owned()];
        assert_eq!(names.next(taken.iter().map(String::as_str)), 8);
    }

    #[test]
    fn owners_differ_and_names_stay_short() {
        assert_ne!(Names::new("web", "1").name(0), Names::new("web", "2").name(0));
        assert!(Names::new(&"x".repeat(200), "1").name(3).len() <= 63);
        assert!(hash("x").bytes().all(|b| ALPHABET.contains(&b)));
    }
}
