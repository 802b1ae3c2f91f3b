//! Puts a component into a registry.

use anyhow::{Context as _, Result};
use wasmk_runtime::{Reference, Settings, images};

/// Pushes a WebAssembly file's bytes and returns the reference by digest.
///
/// # Errors
/// When the bytes are no WebAssembly, the reference is malformed, or the registry refuses.
pub(in super::super) async fn push(reference: &str, wasm: Vec<u8>) -> Result<String> {
    let parsed: Reference =
        reference.parse().with_context(|| format!("\"{reference}\" is no image reference"))?;
    // Nothing is kept: the directory is never made.
    let settings = Settings::new("");
    let digest = images::push(&settings, &parsed, wasm.into(), Default::default(), None).await?;
    Ok(format!("{}/{}@{digest}", parsed.registry(), parsed.repository()))
}
