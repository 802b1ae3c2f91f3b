//! `TYPE`, `TYPE NAME…`, `TYPE/NAME…` and `TYPE,TYPE`: the objects a command is about.

use anyhow::{Result, bail};

use super::resources::{Resource, Resources};

/// Objects of one resource: some by name, or all.
#[derive(Clone, Debug)]
pub(super) struct Selection<'a> {
    pub(super) resource: &'a Resource,
    /// Empty for all.
    pub(super) names: Vec<String>,
}

/// Reads the words after a command's name.
///
/// # Errors
/// In kubectl's words, when a type is unknown or the two forms are mixed.
pub(super) fn read<'a>(resources: &'a Resources, words: &[String]) -> Result<Vec<Selection<'a>>> {
    let [types, names @ ..] = words else {
        bail!(
            "You must specify the type of resource to get. Use \"wasmk api-resources\" for a complete list of supported resources."
        )
    };
    if words.iter().any(|w| w.contains('/')) {
        return by_path(resources, words);
    }
    let mut all = Vec::new();
    for word in types.split(',').filter(|w| !w.is_empty()) {
        for resource in resources.find(word)? {
            all.push(Selection { resource, names: names.to_vec() });
        }
    }
    Ok(all)
}

fn by_path<'a>(resources: &'a Resources, words: &[String]) -> Result<Vec<Selection<'a>>> {
    let mut all: Vec<Selection<'a>> = Vec::new();
    for word in words {
        let Some((kind, name)) = word.split_once('/') else {
            bail!(
                "there is no need to specify a resource type as a separate argument when passing arguments in resource/name form (e.g. 'wasmk get resource/<resource_name>' instead of 'wasmk get resource resource/<resource_name>'"
            )
        };
        if name.is_empty() || name.contains('/') {
            bail!("arguments in resource/name form may not have more than one slash");
        }
        let resource = resources.single(kind)?;
        match all.iter_mut().find(|s| s.resource == resource) {
            Some(selection) => selection.names.push(name.into()),
            None => all.push(Selection { resource, names: vec![name.into()] }),
        }
    }
    Ok(all)
}

/// Escapes a value for use in a query.
pub(super) fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(byte.into()),
            other => out.push_str(&format!("%{other:02X}")),
        }
    }
    out
}

/// A path with a query made of the given pairs; pairs with an empty value are left out.
pub(super) fn with_query(path: &str, pairs: &[(&str, &str)]) -> String {
    let query: Vec<_> =
        pairs.iter().filter(|(_, v)| !v.is_empty()).map(|(k, v)| format!("{k}={}", escaped(v))).collect();
    if query.is_empty() { path.into() } else { format!("{path}?{}", query.join("&")) }
}
