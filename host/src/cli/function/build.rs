//! `wasmk fn build`: source becomes a WebAssembly component.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use indicatif::{ProgressBar, ProgressStyle};

use super::{
    super::{Context, Exit},
    toolchain::Toolchain,
};

#[derive(Debug, clap::Args)]
pub(in super::super) struct Args {
    /// The function's directory
    #[arg(default_value = ".")]
    path: PathBuf,
    /// Where to put the component [default: DIR/NAME.wasm]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

pub(in super::super) fn run(args: &Args, cx: &Context) -> Result<Exit> {
    let component = build(&args.path, args.output.as_deref(), cx)?;
    cx.out.line(component.display().to_string());
    Ok(Exit::Done)
}

/// Builds the function in a directory and returns the component's path.
pub(super) fn build(dir: &Path, output: Option<&Path>, cx: &Context) -> Result<PathBuf> {
    let toolchain = Toolchain::of(dir)?;
    let name = dir.canonicalize()?.file_name().map(|n| n.to_string_lossy().into_owned());
    let output = match output {
        Some(path) => path.to_path_buf(),
        None => dir.join(format!("{}.wasm", name.as_deref().unwrap_or("function"))),
    };
    let begun = Instant::now();
    let spinner = spinner(cx, &format!("building {}", dir.display()));
    let built = toolchain.build(dir, &output);
    spinner.finish_and_clear();
    built?;
    let size =
        std::fs::metadata(&output).with_context(|| format!("the build left no {}", output.display()))?.len();
    let took = begun.elapsed().as_secs_f64();
    cx.out.note(format!("built {} ({} KB) in {took:.1} s", output.display(), size.div_ceil(1000)));
    Ok(output)
}

/// A spinner with the time that has passed; silent where no person is looking.
pub(super) fn spinner(cx: &Context, text: &str) -> ProgressBar {
    if !cx.out.is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{spinner} {msg} ({elapsed})")
        .unwrap_or_else(|_| ProgressStyle::default_spinner());
    let bar = ProgressBar::new_spinner().with_style(style).with_message(text.to_string());
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}
