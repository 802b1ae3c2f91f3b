//! `wasmk cp`: files into a container and out of it, by the `tar` that the container has.

use std::{
    fs::File,
    io::{PipeReader, PipeWriter},
    path::{Component, Path, PathBuf},
};

use anyhow::{Context as _, Result, anyhow, bail};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{AttachParams, AttachedProcess};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy},
    net::unix::pipe,
};

use super::{Context, Exit, exec, output::Output};

/// Most that a failed command's words are shown of, in bytes.
const MAX_COMPLAINT: u64 = 4096;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// FILE, or [[NAMESPACE/]POD:]FILE
    from: String,
    /// FILE, or [[NAMESPACE/]POD:]FILE; one of the two is in a pod
    to: String,
    /// The container [default: the first]
    #[arg(short, long, value_name = "NAME")]
    container: Option<String>,
}

/// A place for files.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    Here(PathBuf),
    Pod { namespace: Option<String>, pod: String, path: String },
}

impl Place {
    fn read(word: &str) -> Result<Self> {
        let malformed =
            || anyhow!("{word:?}: filespec must match the canonical format: [[namespace/]pod:]file/path");
        let Some((pod, path)) = word.split_once(':') else {
            return if word.is_empty() { Err(malformed()) } else { Ok(Self::Here(word.into())) };
        };
        let (namespace, pod) = match pod.split_once('/') {
            Some((namespace, pod)) => (Some(namespace), pod),
            None => (None, pod),
        };
        if pod.is_empty() || pod.contains('/') || namespace == Some("") || path.is_empty() {
            return Err(malformed());
        }
        Ok(Self::Pod { namespace: namespace.map(Into::into), pod: pod.into(), path: path.into() })
    }
}

pub(super) async fn run(args: Args, cx: &Context) -> Result<Exit> {
    match (Place::read(&args.from)?, Place::read(&args.to)?) {
        (Place::Here(from), Place::Pod { namespace, pod, path }) => {
            let from = from.canonicalize().with_context(|| format!("{} doesn't exist", args.from))?;
            Remote::new(cx, namespace, pod, args.container).await?.upload(from, &path).await?;
        }
        (Place::Pod { namespace, pod, path }, Place::Here(to)) => {
            Remote::new(cx, namespace, pod, args.container).await?.download(&path, to, cx.out).await?;
        }
        (Place::Here(_), Place::Here(_)) => {
            bail!("one of src or dest must be a local file specification and the other in a pod")
        }
        (Place::Pod { .. }, Place::Pod { .. }) => {
            bail!("one of src or dest must be a local file specification")
        }
    }
    Ok(Exit::Done)
}

/// The container that is copied with.
struct Remote {
    api: kube::Api<Pod>,
    pod: String,
    container: Option<String>,
}

impl Remote {
    async fn new(
        cx: &Context,
        namespace: Option<String>,
        pod: String,
        container: Option<String>,
    ) -> Result<Self> {
        let client = cx.client().await?;
        let api = match namespace {
            Some(namespace) => kube::Api::namespaced(client, &namespace),
            None => kube::Api::default_namespaced(client),
        };
        Ok(Self { api, pod, container })
    }

    async fn exec(&self, command: &[&str], stdin: bool) -> Result<AttachedProcess> {
        let mut parameters = AttachParams::default().stdin(stdin).stdout(true).stderr(true);
        parameters.container.clone_from(&self.container);
        let command: Vec<String> = command.iter().map(ToString::to_string).collect();
        Ok(self.api.exec(&self.pod, command, &parameters).await?)
    }

    async fn upload(&self, from: PathBuf, to: &str) -> Result<()> {
        // As `cp` does it: into a directory that is there, else under that name.
        let is_directory = end(self.exec(&["test", "-d", to], false).await?).await.is_ok();
        let (directory, name) = match to.trim_end_matches('/').rsplit_once('/') {
            _ if is_directory => {
                let name = from.file_name().with_context(|| format!("{}: has no name", from.display()))?;
                (to, name.to_owned())
            }
            Some(("", name)) => ("/", name.into()),
            Some((directory, name)) => (directory, name.into()),
            None => (".", to.into()),
        };
        let mut process = self.exec(&["tar", "-xmf", "-", "-C", directory], true).await?;
        let (reader, writer) = std::io::pipe()?;
        let packed = tokio::task::spawn_blocking(move || pack(&from, Path::new(&name), writer));
        let mut input = process.stdin().context("the server opened no stream for input")?;
        let mut reader = pipe::Receiver::from_owned_fd(reader.into())?;
        let sent = copy(&mut reader, &mut input).await;
        drop(reader);
        input.shutdown().await.ok();
        drop(input);
        end(process).await?;
        sent.context("cannot send the files")?;
        packed.await?
    }

    async fn download(&self, from: &str, to: PathBuf, out: Output) -> Result<()> {
        let mut process = self.exec(&["tar", "cf", "-", from], false).await?;
        let (reader, writer) = std::io::pipe()?;
        let from = from.to_string();
        let unpacked = tokio::task::spawn_blocking(move || unpack(reader, &from, &to, out));
        let mut output = process.stdout().context("the server opened no stream for output")?;
        let mut writer = pipe::Sender::from_owned_fd(writer.into())?;
        let received = copy(&mut output, &mut writer).await;
        drop(writer);
        // Why the other end stopped reading is known to it.
        let unpacked = unpacked.await?;
        end(process).await?;
        unpacked?;
        received.map(drop).context("cannot receive the files")
    }
}

/// Waits for a command's end.
///
/// # Errors
/// With what it complained of, when it failed.
async fn end(mut process: AttachedProcess) -> Result<()> {
    let (status, stderr) = (process.take_status(), process.stderr());
    drop(process.stdout());
    let mut complaint = String::new();
    if let Some(stderr) = stderr {
        // What is no text says nothing.
        let _ = stderr.take(MAX_COMPLAINT).read_to_string(&mut complaint).await;
    }
    let status = match status {
        Some(status) => status.await,
        None => None,
    };
    match exec::outcome(status)? {
        Exit::Code(code) if code != 0 => bail!("{}", failure(code, &complaint)),
        _ => Ok(()),
    }
}

fn failure(code: u8, complaint: &str) -> String {
    match complaint.trim() {
        "" => format!("command terminated with exit code {code}"),
        complaint => format!("{complaint}\ncommand terminated with exit code {code}"),
    }
}

/// Packs a file or a directory under a name.
fn pack(from: &Path, name: &Path, to: PipeWriter) -> Result<()> {
    let mut archive = tar::Builder::new(to);
    archive.follow_symlinks(false);
    let told = || format!("cannot pack {}", from.display());
    match from.is_dir() {
        true => archive.append_dir_all(name, from).with_context(told)?,
        false => archive.append_file(name, &mut File::open(from).with_context(told)?).with_context(told)?,
    }
    archive.into_inner().with_context(told)?;
    Ok(())
}

/// Unpacks the files and directories that `tar cf - FROM` packed as `to`, or into it if it is a directory.
fn unpack(archive: PipeReader, from: &str, to: &Path, out: Output) -> Result<()> {
    let root = relative(Path::new(from));
    let last = root.file_name().map(Path::new);
    let to = if to.is_dir() { to.join(last.unwrap_or(Path::new(""))) } else { to.into() };
    let mut archive = tar::Archive::new(archive);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = relative(&entry.path()?);
        let Ok(inside) = path.strip_prefix(&root) else {
            bail!("the archive holds {}, which was not asked for", path.display());
        };
        let target = if inside.as_os_str().is_empty() { to.clone() } else { to.join(inside) };
        let told = || format!("cannot write {}", target.display());
        match entry.header().entry_type() {
            tar::EntryType::Directory => std::fs::create_dir_all(&target).with_context(told)?,
            tar::EntryType::Regular | tar::EntryType::Continuous => {
                let parent = target.parent().unwrap_or(Path::new(""));
                std::fs::create_dir_all(parent).with_context(told)?;
                entry.unpack(&target).with_context(told)?;
            }
            // Links might lead anywhere.
            _ => out.note(format!("warning: {} is no file and no directory, skipping", path.display())),
        }
    }
    Ok(())
}

/// A path without its root, `.` and `..`.
fn relative(path: &Path) -> PathBuf {
    path.components().filter(|part| matches!(part, Component::Normal(_))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_told_apart() {
        let pod = |namespace: Option<&str>, pod: &str, path: &str| Place::Pod {
            namespace: namespace.map(Into::into),
            pod: pod.into(),
            path: path.into(),
        };
        assert_eq!(Place::read("a/b").unwrap(), Place::Here("a/b".into()));
        assert_eq!(Place::read("p:/x").unwrap(), pod(None, "p", "/x"));
        assert_eq!(Place::read("n/p:x:y").unwrap(), pod(Some("n"), "p", "x:y"));
        for word in ["", ":x", "p:", "/p:x", "a/b/c:x"] {
            assert!(Place::read(word).unwrap_err().to_string().contains("canonical format"), "{word}");
        }
    }

    fn packed(from: &Path, name: &str) -> PipeReader {
        let (reader, writer) = std::io::pipe().unwrap();
        let (from, name) = (from.to_path_buf(), PathBuf::from(name));
        // Who reads may stop before the end.
        std::thread::spawn(move || drop(pack(&from, &name, writer)));
        reader
    }

    #[test]
    fn what_is_packed_unpacks_where_it_is_wanted() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        std::fs::create_dir_all(from.join("sub")).unwrap();
        std::fs::write(from.join("sub/file"), "text").unwrap();
        unpack(packed(&from, "var/data"), "/var/data", &to, Output::default()).unwrap();
        assert_eq!(std::fs::read_to_string(to.join("sub/file")).unwrap(), "text");
        // Into what is there already, under its own name.
        unpack(packed(&from.join("sub/file"), "var/file"), "/var/file", &to, Output::default()).unwrap();
        assert_eq!(std::fs::read_to_string(to.join("file")).unwrap(), "text");
        let stray = unpack(packed(&from, "etc"), "/var/data", &dir.path().join("other"), Output::default())
            .unwrap_err();
        assert!(stray.to_string().contains("was not asked for"), "{stray}");
    }
}
