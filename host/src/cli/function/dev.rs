//! `wasmk fn dev`: build and deploy again whenever a file is saved.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::{Result, bail};

use super::{
    super::{Context, Exit},
    deploy,
};

/// Between two looks at the files.
const LOOK: Duration = Duration::from_millis(300);
/// Files watched at the most.
const MAX_FILES: usize = 10_000;
/// Directories that hold what was made, not what is written.
const MADE: [&str; 6] = ["target", "node_modules", ".git", "venv", ".venv", "__pycache__"];

#[derive(Debug, clap::Args)]
pub(in super::super) struct Args {
    #[command(flatten)]
    deploy: deploy::Args,
}

pub(in super::super) async fn run(args: Args, cx: &Context) -> Result<Exit> {
    let Some(dir) = args.deploy.directory() else {
        bail!("`wasmk fn dev` needs a function's directory");
    };
    let mut seen = files(dir)?;
    again(&args.deploy, cx).await;
    cx.out.note(format!("watching {}; Ctrl-C ends", dir.display()));
    loop {
        tokio::select! {
            _ = tokio::signal::ctrl_c() => return Ok(Exit::Done),
            () = tokio::time::sleep(LOOK) => {}
        }
        let now = files(dir)?;
        if now == seen {
            continue;
        }
        let changed = now.iter().find(|(path, time)| seen.get(*path) != Some(*time)).map(|(path, _)| path);
        let name = changed.and_then(|p| p.file_name()).map(|n| n.to_string_lossy().into_owned());
        cx.out.note(format!("{} changed", name.as_deref().unwrap_or("a file")));
        again(&args.deploy, cx).await;
        // What the build itself wrote is no change.
        seen = files(dir)?;
    }
}

/// Deploys; a failure is told and waits for the next change.
async fn again(args: &deploy::Args, cx: &Context) {
    if let Err(error) = deploy::run(args.clone(), cx).await {
        cx.out.note(format!("error: {error:#}"));
    }
}

/// The files below a directory with the time of their last change; not what builds make.
fn files(dir: &Path) -> Result<BTreeMap<PathBuf, SystemTime>> {
    let (mut all, mut open) = (BTreeMap::new(), vec![dir.to_path_buf()]);
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(&dir)?.flatten() {
            let (path, name) = (entry.path(), entry.file_name());
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.is_dir() && !MADE.iter().any(|made| name == *made) {
                open.push(path);
            } else if metadata.is_file() && path.extension().is_none_or(|e| e != "wasm") {
                all.insert(path, metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH));
            }
            if all.len() > MAX_FILES {
                bail!("{} has more than {MAX_FILES} files: name the function's own directory", dir.display());
            }
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_watched_and_builds_are_not() {
        let dir = tempfile::tempdir().unwrap();
        for file in ["src/main.rs", "target/x", "out.wasm", "Cargo.toml"] {
            let path = dir.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "x").unwrap();
        }
        let names: Vec<_> = files(dir.path()).unwrap().into_keys().collect();
        assert_eq!(names, [dir.path().join("Cargo.toml"), dir.path().join("src/main.rs")]);
    }
}
