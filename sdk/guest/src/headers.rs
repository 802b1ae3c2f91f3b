//! Header fields.

/// Header fields in order. Names are compared without regard to case; one name may occur many times.
///
/// ```
/// let mut headers = wasmk_guest::Headers::default();
/// headers.add("Content-Type", "text/plain");
/// assert_eq!(headers.get("content-type"), Some("text/plain"));
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Headers(Vec<(String, Vec<u8>)>);

impl Headers {
    pub(crate) fn from_entries(entries: Vec<(String, Vec<u8>)>) -> Self {
        Self(entries)
    }

    pub(crate) fn into_entries(self) -> Vec<(String, Vec<u8>)> {
        self.0
    }

    /// The first value of `name`, if it is UTF-8.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.get_bytes(name).and_then(|value| std::str::from_utf8(value).ok())
    }

    /// The first value of `name`.
    pub fn get_bytes(&self, name: &str) -> Option<&[u8]> {
        self.0.iter().find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| &value[..])
    }

    /// All fields in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.0.iter().map(|(name, value)| (name.as_str(), &value[..]))
    }

    /// Adds a field after those that are there.
    pub fn add(&mut self, name: impl Into<String>, value: impl Into<Vec<u8>>) {
        self.0.push((name.into(), value.into()));
    }

    /// Makes `value` the only one of `name`.
    pub fn set(&mut self, name: impl Into<String>, value: impl Into<Vec<u8>>) {
        let name = name.into();
        self.0.retain(|(found, _)| !found.eq_ignore_ascii_case(&name));
        self.0.push((name, value.into()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn set_replaces_and_add_appends() {
        let mut headers = Headers::default();
        headers.add("Accept", "a");
        headers.add("accept", "b");
        assert_eq!(headers.iter().count(), 2);
        headers.set("ACCEPT", "c");
        assert_eq!((headers.iter().count(), headers.get("accept")), (1, Some("c")));
        headers.add("raw", vec![0xff]);
        assert_eq!((headers.get("raw"), headers.get_bytes("raw")), (None, Some(&[0xff][..])));
    }
}
