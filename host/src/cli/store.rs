//! `wasmk store`: back up, bring back, look into and repair what objects are kept in.

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use wasmk_store::{Embedded, Error, Inspection, SnapshotInfo, Store};

use super::{Context, Exit, client::default_data_dir, hint::WithHint};
use crate::{
    control,
    data_dir::DataDir,
    files,
    store::{StoreKind, StoreSettings, restore_into},
};

/// Which store, as `wasmk up` and the commands below take it.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct StoreArgs {
    /// Where objects are kept: `embedded` on this disk, `memory` until the process ends, or `etcd://HOST:PORT,...`
    #[arg(long, value_name = "KIND", default_value = "embedded")]
    store: StoreKind,
    /// Certificates of the authority that signed etcd's; etcd is then reached over TLS
    #[arg(long, value_name = "FILE")]
    etcd_cafile: Option<PathBuf>,
    /// Certificate to show to etcd
    #[arg(long, value_name = "FILE", requires = "etcd_keyfile", requires = "etcd_cafile")]
    etcd_certfile: Option<PathBuf>,
    /// Key of that certificate
    #[arg(long, value_name = "FILE", requires = "etcd_certfile")]
    etcd_keyfile: Option<PathBuf>,
}

impl StoreArgs {
    pub(super) fn settings(self) -> StoreSettings {
        let identity = self.etcd_certfile.zip(self.etcd_keyfile);
        StoreSettings { etcd_ca: self.etcd_cafile, etcd_identity: identity, ..StoreSettings::new(self.store) }
    }
}

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Write everything at one revision into a file, from a running or a stopped cluster
    Snapshot(Snapshot),
    /// Fill an empty store from a snapshot; a store on this disk must not be in use
    Restore(Restore),
    /// Check a stopped cluster's store, or a snapshot, and say what is wrong with it
    Verify(Verify),
    /// Give up what follows a damage, so that the store opens again; what was there is kept aside
    Repair(At),
    /// Print what can be read of a stopped cluster's store, a line of JSON each
    Dump(Dump),
}

#[derive(Debug, clap::Args)]
pub(super) struct At {
    /// The cluster's data directory
    #[arg(long, value_name = "DIR", default_value_os_t = default_data_dir())]
    data_dir: PathBuf,
}

impl At {
    fn store(&self) -> PathBuf {
        self.data_dir.join("store")
    }
}

#[derive(Debug, clap::Args)]
pub(super) struct Snapshot {
    /// The file to write; it must not be there yet
    file: PathBuf,
    #[command(flatten)]
    at: At,
    #[command(flatten)]
    store: StoreArgs,
}

#[derive(Debug, clap::Args)]
pub(super) struct Restore {
    /// The snapshot
    file: PathBuf,
    #[command(flatten)]
    at: At,
    #[command(flatten)]
    store: StoreArgs,
}

#[derive(Debug, clap::Args)]
pub(super) struct Verify {
    /// A snapshot to check instead
    snapshot: Option<PathBuf>,
    #[command(flatten)]
    at: At,
}

#[derive(Debug, clap::Args)]
pub(super) struct Dump {
    #[command(flatten)]
    at: At,
    /// The records of the log instead of the objects
    #[arg(long)]
    log: bool,
    /// Only keys that start so
    #[arg(long, value_name = "TEXT", default_value = "")]
    prefix: String,
}

pub(super) async fn run(command: Command, cx: &Context) -> Result<Exit> {
    match command {
        Command::Snapshot(args) => snapshot(args, cx).await,
        Command::Restore(args) => restore(args, cx).await,
        Command::Verify(args) => match &args.snapshot {
            Some(file) => verify_snapshot(file, cx),
            None => verify(&args.at, cx),
        },
        Command::Repair(at) => repair(&at, cx),
        Command::Dump(args) => dump(&args, cx),
    }
}

async fn snapshot(args: Snapshot, cx: &Context) -> Result<Exit> {
    if args.file.exists() {
        bail!("{} is there already; a snapshot is not written over another file", args.file.display());
    }
    let mut partial = args.file.clone().into_os_string();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    let taken = take(&args, &partial).await.and_then(|()| {
        let info =
            wasmk_store::check_snapshot(open(&partial)?).context("the snapshot did not arrive whole")?;
        fs::rename(&partial, &args.file)?;
        files::sync_parent(&args.file)?;
        Ok(info)
    });
    if taken.is_err() {
        let _ = fs::remove_file(&partial);
    }
    let info = taken.with_context(|| format!("cannot make the snapshot {}", args.file.display()))?;
    cx.out.line(format!("{}   {}", args.file.display(), said(info)));
    Ok(Exit::Done)
}

/// Writes the snapshot: of an etcd as any client, of a running process by asking it, else from the files.
async fn take(args: &Snapshot, partial: &Path) -> Result<()> {
    let mut file = private_file(partial)?;
    let settings = args.store.clone().settings();
    if let StoreKind::Etcd(_) = settings.kind {
        wasmk_store::export(&settings.etcd().await?, &file).await?;
    } else if DataDir::new(&args.at.data_dir).running()?.is_some() {
        control::receive(&args.at.data_dir, &mut file)?;
    } else {
        let path = args.at.store();
        if !path.is_dir() {
            bail!("there is no store in {}, and nothing runs there", args.at.data_dir.display());
        }
        let (store, _) = Embedded::open(&path, Default::default())?;
        store.snapshot(&file)?;
        store.close().await?;
    }
    file.flush()?;
    file.sync_all()?;
    Ok(())
}

async fn restore(args: Restore, cx: &Context) -> Result<Exit> {
    let settings = args.store.settings();
    let (info, place) = match settings.kind {
        StoreKind::Memory => {
            return Err(anyhow::anyhow!("a store in memory is gone when this command ends"))
                .hint(|| "start with it: `wasmk up --store memory --from-snapshot FILE`".into());
        }
        StoreKind::Etcd(ref members) => {
            let store: std::sync::Arc<dyn Store> = std::sync::Arc::new(settings.etcd().await?);
            (restore_into(&*store, &args.file).await?, members.join(","))
        }
        StoreKind::Embedded => {
            let _claim = DataDir::new(&args.at.data_dir).claim()?;
            let path = args.at.store();
            let restored = Embedded::restore(&path, open(&args.file)?);
            let info = restored
                .with_context(|| format!("cannot restore {}", args.file.display()))
                .hint(|| format!("to replace what is there, move {} away first", path.display()))?;
            (info, path.display().to_string())
        }
    };
    cx.out.line(format!("restored to {place}   {}", said(info)));
    Ok(Exit::Done)
}

fn said(info: SnapshotInfo) -> String {
    format!("revision {}, {} keys", info.revision, info.keys)
}

fn verify_snapshot(file: &Path, cx: &Context) -> Result<Exit> {
    let checked = wasmk_store::check_snapshot(open(file)?);
    let info = checked.with_context(|| format!("{} cannot be restored", file.display()))?;
    cx.out.line(format!("{} is whole   {}", file.display(), said(info)));
    Ok(Exit::Done)
}

fn verify(at: &At, cx: &Context) -> Result<Exit> {
    let path = at.store();
    let found = explained(Embedded::inspect(&path), at)?;
    cx.out.columns(&summary(&path, &found));
    let Some(damage) = &found.damage else {
        cx.out.line("the store is whole");
        return Ok(Exit::Done);
    };
    cx.out.line(format!("DAMAGED: {damage}"));
    cx.out.line(format!(
        "`wasmk store repair` would keep the {} keys of revision {} and give up {} transactions behind it",
        found.keys, found.revision, found.stranded
    ));
    Ok(Exit::No)
}

fn summary(path: &Path, found: &Inspection) -> Vec<Vec<String>> {
    let row = |name: &str, value: String| vec![name.to_string(), value];
    let mut rows = vec![
        row("store", path.display().to_string()),
        row("format", found.format.clone()),
        row("closed", if found.clean { "properly" } else { "not: the process was killed" }.into()),
        row("revision", found.revision.to_string()),
        row("keys", found.keys.to_string()),
    ];
    for checkpoint in &found.checkpoints {
        let state = checkpoint.problem.as_deref().unwrap_or("whole");
        let text = format!("revision {}, {} keys: {state}", checkpoint.revision, checkpoint.keys);
        rows.push(row(&checkpoint.name, text));
    }
    for segment in &found.segments {
        let text = format!("from revision {}, {} records", segment.base, segment.records);
        rows.push(row(&segment.file, text));
    }
    if found.unfinished_bytes > 0 {
        let text = format!("{} bytes, never acknowledged; opening cuts them off", found.unfinished_bytes);
        rows.push(row("unfinished", text));
    }
    rows
}

fn repair(at: &At, cx: &Context) -> Result<Exit> {
    let _claim = DataDir::new(&at.data_dir).claim()?;
    let Some(done) = explained(Embedded::repair(at.store()), at)? else {
        cx.out.line("the store is whole; there is nothing to repair");
        return Ok(Exit::Done);
    };
    cx.out.line(format!("damage: {}", done.damage));
    cx.out.line(format!("kept the {} keys of revision {}", done.keys, done.saved));
    cx.out.line(format!("gave up {} transactions behind it", done.stranded));
    cx.out.line(format!("the directory as it was is {}", done.kept.display()));
    Ok(Exit::Done)
}

fn dump(args: &Dump, cx: &Context) -> Result<Exit> {
    let path = args.at.store();
    if args.log {
        let mut print = |entry: wasmk_store::LogEntry| {
            let wanted = |change: &&wasmk_store::LoggedChange| change.key.starts_with(args.prefix.as_bytes());
            let changes: Vec<Value> = entry.changes.iter().filter(wanted).map(change).collect();
            if args.prefix.is_empty() || !changes.is_empty() {
                let line = json!({
                    "file": entry.file, "offset": entry.offset, "kind": entry.kind,
                    "revision": entry.revision, "bytes": entry.bytes, "changes": changes,
                });
                cx.out.line(line.to_string());
            }
        };
        explained(Embedded::log(&path, &mut print), &args.at)?;
        return Ok(Exit::Done);
    }
    let contents = explained(Embedded::contents(&path), &args.at)?;
    for kv in contents.items.iter().filter(|kv| kv.key.starts_with(args.prefix.as_bytes())) {
        let line = json!({
            "key": String::from_utf8_lossy(&kv.key), "createRevision": kv.create_revision,
            "modRevision": kv.mod_revision, "value": value(&kv.value),
        });
        cx.out.line(line.to_string());
    }
    match contents.damage {
        Some(damage) => Err(damage).context("what follows was not printed"),
        None => Ok(Exit::Done),
    }
}

fn change(change: &wasmk_store::LoggedChange) -> Value {
    let key = String::from_utf8_lossy(&change.key);
    match change.value_bytes {
        Some(bytes) => json!({"key": key, "bytes": bytes}),
        None => json!({"key": key, "deleted": true}),
    }
}

/// A value as JSON if it is, as text otherwise; what is encrypted stays so.
fn value(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap_or_else(|_| String::from_utf8_lossy(bytes).into())
}

/// Adds what can be done about a store that is in use.
fn explained<T>(result: Result<T, Error>, at: &At) -> Result<T> {
    match result {
        Err(error @ Error::InUse { .. }) => Err(error).hint(|| {
            let dir = at.data_dir.display();
            format!("stop it with `wasmk down --data-dir {dir}`, or take a snapshot and look into that")
        }),
        result => Ok(result?),
    }
}

fn open(path: &Path) -> Result<File> {
    File::open(path).with_context(|| format!("cannot open {}", path.display()))
}

/// A snapshot holds what the cluster holds: nobody else may read it.
fn private_file(path: &Path) -> Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    let file = File::options().write(true).create(true).truncate(true).mode(0o600).open(path);
    file.with_context(|| format!("cannot write {}", path.display()))
}
