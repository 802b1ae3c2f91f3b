//! `wasmk fn new`: a function that builds and answers, to start from.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use super::super::{Context, Exit};

/// Files of a template: where they go, and what is in them (`{{name}}` is the function's name).
type Template = &'static [(&'static str, &'static str)];

const RUST: Template = &[
    ("Cargo.toml", include_str!("../../../templates/rust/Cargo.toml")),
    ("src/main.rs", include_str!("../../../templates/rust/src/main.rs")),
    (".gitignore", include_str!("../../../templates/rust/gitignore")),
];

const JAVASCRIPT: Template = &[
    ("package.json", include_str!("../../../templates/js/package.json")),
    ("function.js", include_str!("../../../templates/js/function.js")),
    (".gitignore", include_str!("../../../templates/js/gitignore")),
];

const PYTHON: Template = &[
    ("requirements.txt", include_str!("../../../templates/python/requirements.txt")),
    ("app.py", include_str!("../../../templates/python/app.py")),
    (".gitignore", include_str!("../../../templates/python/gitignore")),
];

const C: Template = &[
    ("function.c", include_str!("../../../templates/c/function.c")),
    ("wasmk.h", include_str!("../../../templates/c/wasmk.h")),
    ("wasmk.c", include_str!("../../../templates/c/wasmk.c")),
    ("requirements.txt", include_str!("../../../templates/c/requirements.txt")),
    (".gitignore", include_str!("../../../templates/c/gitignore")),
];

const GO: Template = &[
    ("main.go", include_str!("../../../templates/go/main.go")),
    ("go.mod", include_str!("../../../templates/go/go.mod")),
    ("requirements.txt", include_str!("../../../templates/go/requirements.txt")),
    (".gitignore", include_str!("../../../templates/go/gitignore")),
];

#[derive(Debug, clap::Args)]
pub(in super::super) struct Args {
    /// The function's name, also that of the directory
    name: String,
    /// The language
    #[arg(long, value_enum, default_value_t)]
    lang: Lang,
    /// The directory to make [default: ./NAME]
    #[arg(long, value_name = "DIR")]
    path: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, Default, clap::ValueEnum)]
enum Lang {
    #[default]
    Rust,
    /// Needs node and npm to build
    Js,
    /// Needs python3 with venv to build
    Python,
    /// Needs zig to build, or python3 with venv, which fetches it
    C,
    /// Needs go 1.22 or newer to build, or python3 with venv, which fetches it
    Go,
}

pub(in super::super) fn run(args: Args, cx: &Context) -> Result<Exit> {
    check_name(&args.name)?;
    let dir = args.path.unwrap_or_else(|| PathBuf::from(&args.name));
    if std::fs::read_dir(&dir).is_ok_and(|mut entries| entries.next().is_some()) {
        bail!("{} is there already and not empty; choose another --path", dir.display());
    }
    let template = match args.lang {
        Lang::Rust => RUST,
        Lang::Js => JAVASCRIPT,
        Lang::Python => PYTHON,
        Lang::C => C,
        Lang::Go => GO,
    };
    for (file, text) in template {
        write(&dir.join(file), &text.replace("{{name}}", &args.name))?;
    }
    let dir = dir.display();
    cx.out.line(format!("created {dir}"));
    cx.out.note(format!("next: wasmk fn deploy {dir}"));
    Ok(Exit::Done)
}

fn write(path: &Path, text: &str) -> Result<()> {
    let parent = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(parent)
        .with_context(|| format!("cannot make the directory {}", parent.display()))?;
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// A function's name becomes part of a host name: a DNS label (RFC 1035) of at most 63 characters.
pub(super) fn check_name(name: &str) -> Result<()> {
    let fits = (1..=63).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.ends_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
    if !fits {
        bail!(
            "\"{name}\" cannot be a function's name: lower-case letters, digits and '-' were expected, at most 63, beginning with a letter"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_dns_labels() {
        for good in ["a", "hello-2", &"a".repeat(63)] {
            check_name(good).unwrap();
        }
        for bad in ["", "A", "2a", "a-", "a.b", "a_b", &"a".repeat(64)] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }
}
