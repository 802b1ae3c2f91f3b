//! Limits of each request to a WebAssembly function, as annotations of its pods (or its template) say them.

use std::time::Duration;

use crate::Quantity;

/// Annotation: most processor time of one request, in milliseconds.
pub const MAX_CPU: &str = "functions.wasmk.dev/max-cpu-millis";
/// Annotation: most memory of one instance, as a quantity.
pub const MAX_MEMORY: &str = "functions.wasmk.dev/max-memory";
/// Annotation: most bytes that one request sends out by HTTP, as a quantity.
pub const MAX_EGRESS: &str = "functions.wasmk.dev/max-egress";
/// Annotation: most bytes of an answer's body, as a quantity.
pub const MAX_RESPONSE: &str = "functions.wasmk.dev/max-response";
/// Annotation: `enabled` lets an instance serve several requests, one after another, as far as its program
/// declares that it can; `disabled` is the default.
pub const INSTANCE_REUSE: &str = "functions.wasmk.dev/instance-reuse";

/// Annotation: how the program is given its requests. `http`, the default: it is a component that answers HTTP.
/// `wagi`: it is a command that is started for each request, as CGI/1.1 says.
pub const EXECUTOR: &str = "functions.wasmk.dev/executor";

/// Annotation: stores of keys and values that the program may open, by name, with commas between. All pods of a
/// namespace on one node that name a store have the same keys in it.
pub const KEYVALUE: &str = "functions.wasmk.dev/keyvalue";
/// Annotation: containers of objects that the program may use, by name, with commas between. All pods of a namespace
/// on one node that name a container have the same objects in it.
pub const BLOBSTORE: &str = "functions.wasmk.dev/blobstore";
/// Most stores of one pod, and most containers.
pub const MAX_STORES: usize = 16;

/// The stores of keys and values that the annotation names; `get` gives the value of a key.
///
/// # Errors
/// When one of the names is no DNS label, or there are more than [`MAX_STORES`].
pub fn stores<'a>(get: impl Fn(&str) -> Option<&'a str>) -> Result<Vec<String>, BadAnnotation> {
    names(get, KEYVALUE)
}

/// The containers of objects that the annotation names; `get` gives the value of a key.
///
/// # Errors
/// When one of the names is no DNS label, or there are more than [`MAX_STORES`].
pub fn containers<'a>(get: impl Fn(&str) -> Option<&'a str>) -> Result<Vec<String>, BadAnnotation> {
    names(get, BLOBSTORE)
}

fn names<'a>(get: impl Fn(&str) -> Option<&'a str>, key: &'static str) -> Result<Vec<String>, BadAnnotation> {
    let label = |name: &str| {
        let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        (1..=63).contains(&name.len())
            && name.chars().all(inner)
            && !name.starts_with('-')
            && !name.ends_with('-')
    };
    let expected = "up to 16 names of lower-case letters, digits and '-', with commas between,";
    let names = parsed(&get, key, expected, |text| {
        let names: Vec<String> = text.split(',').map(|name| name.trim().to_owned()).collect();
        (names.len() <= MAX_STORES && names.iter().all(|name| label(name))).then_some(names)
    })?;
    Ok(names.unwrap_or_default())
}

/// What the annotations of this module say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PerRequest {
    /// Most processor time.
    pub cpu: Option<Duration>,
    /// Most bytes of memory.
    pub memory: Option<u64>,
    /// Most bytes sent out.
    pub egress: Option<u64>,
    /// Most bytes of an answer.
    pub response: Option<u64>,
    /// Whether instances may be used again.
    pub reuse: bool,
    /// Whether a command is started for each request.
    pub wagi: bool,
}

/// An annotation whose value is not what it takes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("annotation {key} is {value:?}; {expected} was expected")]
pub struct BadAnnotation {
    /// Which.
    pub key: &'static str,
    /// Its value.
    pub value: String,
    /// What it takes.
    pub expected: &'static str,
}

impl PerRequest {
    /// Reads the annotations through `get`, which gives the value of a key.
    ///
    /// # Errors
    /// The first that has a value it cannot have.
    pub fn read<'a>(get: impl Fn(&str) -> Option<&'a str>) -> Result<Self, BadAnnotation> {
        let bytes = |key| parsed(&get, key, "a positive quantity of bytes, such as 64Mi,", quantity);
        let millis = parsed(&get, MAX_CPU, "a positive number of milliseconds", |text| {
            text.parse().ok().filter(|millis: &u32| *millis > 0)
        })?;
        let reuse = parsed(&get, INSTANCE_REUSE, "enabled or disabled", |text| match text {
            "enabled" => Some(true),
            "disabled" => Some(false),
            _ => None,
        })?;
        let wagi = parsed(&get, EXECUTOR, "http or wagi", |text| match text {
            "wagi" => Some(true),
            "http" => Some(false),
            _ => None,
        })?;
        Ok(Self {
            cpu: millis.map(|millis| Duration::from_millis(millis.into())),
            memory: bytes(MAX_MEMORY)?,
            egress: bytes(MAX_EGRESS)?,
            response: bytes(MAX_RESPONSE)?,
            reuse: reuse.unwrap_or(false),
            wagi: wagi.unwrap_or(false),
        })
    }
}

fn quantity(text: &str) -> Option<u64> {
    u64::try_from(text.parse::<Quantity>().ok()?.value()).ok().filter(|bytes| *bytes > 0)
}

fn parsed<'a, T>(
    get: &impl Fn(&str) -> Option<&'a str>,
    key: &'static str,
    expected: &'static str,
    parse: impl Fn(&str) -> Option<T>,
) -> Result<Option<T>, BadAnnotation> {
    let Some(value) = get(key) else { return Ok(None) };
    match parse(value) {
        Some(found) => Ok(Some(found)),
        None => Err(BadAnnotation { key, value: value.to_owned(), expected }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<PerRequest, BadAnnotation> {
        let pairs: std::collections::HashMap<&str, &str> = pairs.iter().copied().collect();
        PerRequest::read(|key| pairs.get(key).copied())
    }

    #[test]
    fn annotations_are_read_and_absent_ones_limit_nothing() {
        assert_eq!(read(&[]), Ok(PerRequest::default()));
        let all = [
            (MAX_CPU, "50"),
            (MAX_MEMORY, "64Mi"),
            (MAX_EGRESS, "1k"),
            (MAX_RESPONSE, "10"),
            (INSTANCE_REUSE, "enabled"),
            (EXECUTOR, "wagi"),
        ];
        let expect = PerRequest {
            cpu: Some(Duration::from_millis(50)),
            memory: Some(64 << 20),
            egress: Some(1000),
            response: Some(10),
            reuse: true,
            wagi: true,
        };
        assert_eq!(read(&all), Ok(expect));
        assert_eq!(read(&[(INSTANCE_REUSE, "disabled"), (EXECUTOR, "http")]), Ok(PerRequest::default()));
    }

    #[test]
    fn stores_are_names() {
        let read = |text: &'static str| stores(move |key| (key == KEYVALUE).then_some(text));
        assert_eq!(stores(|_| None), Ok(Vec::new()));
        assert_eq!(read("default, sessions"), Ok(vec!["default".into(), "sessions".into()]));
        for bad in ["", "a,", "A", "a/b", "-a", "a,b,c,d,e,f,g,h,i,j,k,l,m,n,o,p,q"] {
            assert_eq!(read(bad).unwrap_err().key, KEYVALUE, "{bad}");
        }
        let read = |text: &'static str| containers(move |key| (key == BLOBSTORE).then_some(text));
        assert_eq!(read("pictures"), Ok(vec!["pictures".into()]));
        assert_eq!(read("A").unwrap_err().key, BLOBSTORE);
    }

    #[test]
    fn wrong_values_are_named() {
        for (key, value) in [
            (MAX_CPU, "0"),
            (MAX_CPU, "1.5"),
            (MAX_MEMORY, "-1"),
            (MAX_EGRESS, "much"),
            (MAX_RESPONSE, ""),
            (INSTANCE_REUSE, "true"),
            (EXECUTOR, "fcgi"),
        ] {
            let error = read(&[(key, value)]).unwrap_err();
            assert_eq!((error.key, error.value.as_str()), (key, value));
        }
    }
}
