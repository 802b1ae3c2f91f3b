//! `wasmk push`: a WebAssembly file becomes an artifact in a registry.

use std::path::PathBuf;

use anyhow::{Context as _, Result};

use super::{Context, Exit, api::Api, function};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The .wasm file
    file: PathBuf,
    /// REPOSITORY[:TAG] in the cluster's registry, or a whole reference with a registry
    #[arg(value_name = "REFERENCE")]
    reference: String,
}

pub(super) async fn run(args: Args, cx: &Context) -> Result<Exit> {
    let bytes = std::fs::read(&args.file).with_context(|| format!("cannot read {}", args.file.display()))?;
    let reference = if names_registry(&args.reference) {
        args.reference
    } else {
        let api = Api::new(cx.client().await?);
        format!("{}/{}", function::endpoint(&api, "registry").await?, args.reference)
    };
    let digest = function::push::push(&reference, bytes).await?;
    cx.out.line(digest);
    Ok(Exit::Done)
}

/// Whether the first part of a reference is a host: it has a dot or a port, or is `localhost`.
fn names_registry(reference: &str) -> bool {
    reference.split_once('/').is_some_and(|(first, _)| first.contains(['.', ':']) || first == "localhost")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_with_and_without_a_registry() {
        for with in ["127.0.0.1:5050/a/b:1", "ghcr.io/a/b", "localhost/a"] {
            assert!(names_registry(with), "{with}");
        }
        for without in ["default/hello:1", "hello", "hello:1"] {
            assert!(!names_registry(without), "{without}");
        }
    }
}
