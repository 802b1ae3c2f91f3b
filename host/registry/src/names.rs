//! Names of repositories, tags and contents. A value of these types is safe to use in a path.

use std::fmt;

use sha2::{Digest as _, Sha256};

use crate::Error;

/// Longest name of a repository, in bytes.
const MAX_REPOSITORY: usize = 255;
/// Longest tag, in bytes.
const MAX_TAG: usize = 128;

/// A repository's name: lower-case parts, joined by slashes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Repository(String);

/// A tag.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tag(String);

/// A SHA-256 digest.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Digest(String);

impl Repository {
    /// Checks a name.
    ///
    /// # Errors
    /// When it is not one.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let part = |part: &str| {
            let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
            let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c);
            ends(part.chars().next())
                && ends(part.chars().last())
                && part.chars().all(inner)
                && !part.contains("..")
        };
        match text.len() <= MAX_REPOSITORY && text.split('/').all(part) {
            true => Ok(Self(text.into())),
            false => Err(Error::NameInvalid(text.into())),
        }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Tag {
    /// Checks a tag.
    ///
    /// # Errors
    /// When it is not one.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let fits = (1..=MAX_TAG).contains(&text.len())
            && text.starts_with(word)
            && text.chars().all(|c| word(c) || c == '.' || c == '-');
        if fits { Ok(Self(text.into())) } else { Err(Error::NameInvalid(text.into())) }
    }

    /// The tag.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Digest {
    /// Reads `sha256:HEX`.
    ///
    /// # Errors
    /// When it has another form.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let hex = text.strip_prefix("sha256:").unwrap_or("");
        let fits = hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if fits { Ok(Self(hex.into())) } else { Err(Error::DigestInvalid(text.into())) }
    }

    /// The digest of bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(hex::encode(Sha256::digest(bytes)))
    }

    /// What a hash that has seen all bytes comes to.
    pub(crate) fn finish(hash: Sha256) -> Self {
        Self(hex::encode(hash.finalize()))
    }

    /// The 64 hexadecimal digits.
    pub fn hex(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_inside_their_directory() {
        for good in ["hello", "default/hello", "a/b/c", "a.b-c_d/e1"] {
            Repository::parse(good).unwrap();
        }
        for bad in ["", "/", "a//b", "../a", "a/..", "A", "a/.b", "_tags", "a/_tags", &"a".repeat(256)] {
            assert!(Repository::parse(bad).is_err(), "{bad}");
        }
        for bad in ["", ".", "..", "a/b", "-a", &"a".repeat(129)] {
            assert!(Tag::parse(bad).is_err(), "{bad}");
        }
        assert!(Digest::parse("sha256:../../etc/passwd").is_err());
        assert_eq!(Digest::parse(&Digest::of(b"x").to_string()).unwrap(), Digest::of(b"x"));
    }
}
