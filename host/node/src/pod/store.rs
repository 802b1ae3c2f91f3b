//! The agent's own record of its pods on disk, so that a restarted agent goes on from here, with or without the
//! API: `<pods>/records.log`, one line for each change, and `<pods>/<uid>/` with the pod's volumes. Lines are only
//! added, for files that come and go with every change are dear on many disks; when most of them are out of date,
//! the log is written anew. The directory of a pod that has left is set aside under another name at once, and
//! removed when there is time.

use std::{
    collections::HashMap,
    fs,
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use wasmk_api::k8s_openapi::api::core::v1::Pod;

use super::state::PodState;

/// What the names of directories begin with that are to be removed.
const ASIDE: &str = ".gone-";
/// Name of the log beside the pods' directories.
const LOG: &str = "records.log";
/// The log is written anew when it is larger than this, in bytes, and more than [`WORTH`] times what counts of it.
const SMALL: u64 = 1 << 20;
const WORTH: u64 = 4;

/// A pod found on disk.
#[derive(Clone, Debug, Default)]
pub(crate) struct Known {
    /// As it was last seen in the API.
    pub pod: Arc<Pod>,
    /// What was known of it.
    pub state: PodState,
}

/// What changed of a pod's record; what is absent is as it was.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Line<P, S> {
    uid: String,
    #[serde(default = "Option::default", skip_serializing_if = "Option::is_none")]
    pod: Option<P>,
    #[serde(default = "Option::default", skip_serializing_if = "Option::is_none")]
    state: Option<S>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    gone: bool,
}

/// The records of all pods of the node.
pub(crate) struct Records {
    dir: PathBuf,
    inner: Mutex<Inner>,
}

struct Inner {
    log: fs::File,
    /// Bytes in the log.
    written: u64,
    /// Bytes of the lines that count.
    live: u64,
    pods: HashMap<String, Entry>,
}

#[derive(Default)]
struct Entry {
    known: Known,
    /// Bytes of the pod's line and of its state's.
    bytes: [u64; 2],
}

impl Records {
    /// Opens the records in a directory that exists. Damaged lines are left out, for the API knows better; directories
    /// that are set aside or no pod's are removed.
    ///
    /// # Errors
    /// When the log cannot be read or written.
    pub(crate) fn open(dir: PathBuf) -> io::Result<Self> {
        let mut pods = read(&dir)?;
        for entry in fs::read_dir(&dir)?.flatten() {
            let owned = entry.file_name().to_str().is_some_and(|name| pods.contains_key(name));
            if !owned && entry.path().is_dir() {
                remove(&entry.path());
            }
        }
        let (log, written) = write(&dir, &mut pods)?;
        Ok(Self { dir, inner: Mutex::new(Inner { log, written, live: written, pods }) })
    }

    /// All pods on record.
    pub(crate) fn known(&self) -> Vec<Known> {
        self.inner.lock().pods.values().map(|entry| entry.known.clone()).collect()
    }

    /// Where the pods' own directories are.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// A pod's own directory.
    pub(crate) fn pod_dir(&self, uid: &str) -> PathBuf {
        self.dir.join(uid)
    }

    /// Writes what changed since the last call; the first one makes the pod's directory.
    pub(super) fn save(&self, uid: &str, pod: &Arc<Pod>, state: &PodState) -> io::Result<()> {
        let mut inner = self.inner.lock();
        let before = inner.pods.get(uid).map(|entry| &entry.known);
        let new_pod = before.is_none_or(|known| !same(&known.pod, pod)).then_some(pod);
        let new_state = before.is_none_or(|known| known.state != *state).then_some(state);
        if before.is_none() {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(self.dir.join(uid))?;
        }
        let bytes = [
            new_pod.map(|pod| line(uid, Some(&**pod), None, false)).transpose()?,
            new_state.map(|state| line(uid, None, Some(state), false)).transpose()?,
        ];
        inner.add(uid, &bytes)?;
        let entry = inner.pods.entry(uid.to_owned()).or_default();
        entry.known.pod = pod.clone();
        if let Some(state) = new_state {
            entry.known.state = state.clone();
        }
        inner.tidy(&self.dir)
    }

    /// Takes the pod off the record at once; where its directory now is, if it had one.
    pub(super) fn set_aside(&self, uid: &str) -> Option<PathBuf> {
        if let Err(error) = self.inner.lock().forget(uid) {
            tracing::warn!(uid, %error, "cannot take a pod off the record");
        }
        let (dir, aside) = (self.pod_dir(uid), self.dir.join(format!("{ASIDE}{uid}")));
        match fs::rename(&dir, &aside) {
            Ok(()) => Some(aside),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                tracing::warn!(dir = %dir.display(), %error, "cannot set the directory of a pod aside");
                Some(dir)
            }
        }
    }
}

impl Inner {
    /// Adds lines of the pod and of its state to the log.
    fn add(&mut self, uid: &str, lines: &[Option<Vec<u8>>; 2]) -> io::Result<()> {
        let text = lines.iter().flatten().flatten().copied().collect::<Vec<u8>>();
        if text.is_empty() {
            return Ok(());
        }
        self.log.write_all(&text)?;
        self.written += text.len() as u64;
        let entry = self.pods.entry(uid.to_owned()).or_default();
        for (bytes, line) in entry.bytes.iter_mut().zip(lines) {
            if let Some(line) = line {
                self.live = self.live + line.len() as u64 - *bytes;
                *bytes = line.len() as u64;
            }
        }
        Ok(())
    }

    fn forget(&mut self, uid: &str) -> io::Result<()> {
        let Some(entry) = self.pods.remove(uid) else { return Ok(()) };
        self.live -= entry.bytes.iter().sum::<u64>();
        let text = line(uid, None, None, true)?;
        self.written += text.len() as u64;
        self.log.write_all(&text)
    }

    /// Writes the log anew when most of it is out of date.
    fn tidy(&mut self, dir: &Path) -> io::Result<()> {
        if self.written > SMALL && self.written > WORTH * self.live {
            (self.log, self.written) = write(dir, &mut self.pods)?;
            self.live = self.written;
        }
        Ok(())
    }
}

/// Removes a directory with all that is in it, if it is there. May take long.
pub(super) fn remove(dir: &Path) {
    if let Err(error) = fs::remove_dir_all(dir)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(dir = %dir.display(), %error, "cannot remove a directory of a pod");
    }
}

/// The pods that the log names.
fn read(dir: &Path) -> io::Result<HashMap<String, Entry>> {
    let text = match fs::read(dir.join(LOG)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        text => text?,
    };
    let mut found: HashMap<String, (Option<Arc<Pod>>, Option<PodState>)> = HashMap::new();
    for line in text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let Ok(line) = serde_json::from_slice::<Line<Pod, PodState>>(line) else {
            tracing::warn!("a line of the record of pods is damaged and left out");
            continue;
        };
        if line.gone {
            found.remove(&line.uid);
            continue;
        }
        let (pod, state) = found.entry(line.uid).or_default();
        *pod = line.pod.map(Arc::new).or(pod.take());
        *state = line.state.or(state.take());
    }
    let whole =
        |(uid, (pod, state))| Some((uid, Entry { known: Known { pod: pod?, state: state? }, bytes: [0; 2] }));
    Ok(found.into_iter().filter_map(whole).collect())
}

/// Writes the log with nothing but what counts; the file to add to, and how long it is. A crash leaves the old log or
/// the new one.
fn write(dir: &Path, pods: &mut HashMap<String, Entry>) -> io::Result<(fs::File, u64)> {
    let new = dir.join(format!("{LOG}.new"));
    let mut text = Vec::new();
    for (uid, Entry { known, bytes }) in pods {
        let lines = [line(uid, Some(&*known.pod), None, false)?, line(uid, None, Some(&known.state), false)?];
        *bytes = lines.each_ref().map(|line| line.len() as u64);
        text.extend(lines.into_iter().flatten());
    }
    let mut file = fs::OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(&text)?;
    file.sync_data()?;
    fs::rename(new, dir.join(LOG))?;
    Ok((file, text.len() as u64))
}

fn line(uid: &str, pod: Option<&Pod>, state: Option<&PodState>, gone: bool) -> io::Result<Vec<u8>> {
    // A line's end stands before it: so it ends one that was cut off, too.
    let mut text = vec![b'\n'];
    serde_json::to_writer(&mut text, &Line { uid: uid.to_owned(), pod, state, gone })?;
    Ok(text)
}

/// Whether a restarted agent would do the same with both: the status is computed anew anyway.
fn same(a: &Arc<Pod>, b: &Arc<Pod>) -> bool {
    let (m, n) = (&a.metadata, &b.metadata);
    Arc::ptr_eq(a, b)
        || (a.spec == b.spec
            && m.labels == n.labels
            && m.annotations == n.annotations
            && m.deletion_timestamp == n.deletion_timestamp
            && m.deletion_grace_period_seconds == n.deletion_grace_period_seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str) -> Arc<Pod> {
        let mut pod = Pod::default();
        pod.metadata.labels = Some([("app".to_owned(), name.to_owned())].into());
        Arc::new(pod)
    }

    fn labels(records: &Records) -> Vec<String> {
        let pods = records.known();
        let mut all: Vec<_> =
            pods.iter().map(|k| k.pod.metadata.labels.as_ref().unwrap()["app"].clone()).collect();
        all.sort();
        all
    }

    #[test]
    fn what_was_set_aside_is_off_the_record_and_goes_with_the_next_start() {
        let pods = tempfile::tempdir().unwrap();
        let records = Records::open(pods.path().into()).unwrap();
        for uid in ["stays", "leaves"] {
            records.save(uid, &named(uid), &PodState::default()).unwrap();
            fs::create_dir(records.pod_dir(uid).join("volumes")).unwrap();
        }
        let aside = records.set_aside("leaves").unwrap();
        assert!(aside.join("volumes").is_dir() && !records.pod_dir("leaves").exists());
        assert_eq!(records.set_aside("leaves"), None, "it has gone already");
        let records = Records::open(pods.path().into()).unwrap();
        assert_eq!(labels(&records), ["stays"]);
        assert!(!aside.exists() && records.pod_dir("stays").is_dir());
    }

    #[test]
    fn the_last_line_counts_and_a_torn_one_does_not() {
        let pods = tempfile::tempdir().unwrap();
        let records = Records::open(pods.path().into()).unwrap();
        let settled = PodState { settled: true, ..PodState::default() };
        records.save("a", &named("first"), &PodState::default()).unwrap();
        records.save("a", &named("second"), &settled).unwrap();
        let log = pods.path().join(LOG);
        let mut text = fs::read(&log).unwrap();
        text.extend_from_slice(b"\n{\"uid\":\"a\",\"pod\":{\"metadata\":{\"labels\":{\"app\":\"to");
        fs::write(&log, text).unwrap();
        let records = Records::open(pods.path().into()).unwrap();
        assert_eq!(labels(&records), ["second"]);
        assert!(records.known()[0].state.settled);
    }

    #[test]
    fn the_log_stays_short() {
        let pods = tempfile::tempdir().unwrap();
        let records = Records::open(pods.path().into()).unwrap();
        let long = "x".repeat(64 << 10);
        for round in 0..200 {
            records.save("a", &named(&format!("{long}{round}")), &PodState::default()).unwrap();
        }
        let size = fs::metadata(pods.path().join(LOG)).unwrap().len();
        assert!(size <= SMALL + (128 << 10), "{size}");
        records.save("b", &named("b"), &PodState::default()).unwrap();
        let records = Records::open(pods.path().into()).unwrap();
        assert_eq!(labels(&records), ["b".to_owned(), format!("{long}199")]);
    }
}
