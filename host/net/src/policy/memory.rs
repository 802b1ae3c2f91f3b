//! Keeps the last known rules on disk, so that an agent that is started while the API is out of reach holds its pods to
//! them from the first connection on.

use std::{
    fs, io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use super::book::Page;

/// Most bytes that are kept. A cluster of more is kept without its pods: then nobody is taken for one of those that
/// policies let through, which is the safe side.
const MOST: usize = 32 << 20;

/// A file for the rules.
#[derive(Clone, Debug)]
pub(super) struct Memory {
    file: PathBuf,
}

impl Memory {
    pub(super) fn new(file: PathBuf) -> Self {
        Self { file }
    }

    /// What was kept; nothing when there is no such file. One that cannot be read is told of and left out.
    pub(super) fn read(&self) -> Page {
        let text = match fs::read(&self.file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Page::default(),
            text => text,
        };
        let page = text.and_then(|text| serde_json::from_slice(&text).map_err(io::Error::from));
        page.unwrap_or_else(|error| {
            tracing::warn!(file = %self.file.display(), %error, "the kept network policies cannot be read");
            Page::default()
        })
    }

    /// Keeps a page in place of the former one. A crash leaves the old one or the new one.
    pub(super) fn write(&self, mut page: Page) -> io::Result<()> {
        let mut text = serde_json::to_vec(&page)?;
        if text.len() > MOST {
            page.pods.clear();
            text = serde_json::to_vec(&page)?;
        }
        if text.len() > MOST {
            return Err(io::Error::other(format!(
                "{} bytes are more than the {MOST} that are kept",
                text.len()
            )));
        }
        let fresh = self.file.with_extension("new");
        write(&fresh, &text)?;
        fs::rename(fresh, &self.file)
    }
}

fn write(file: &Path, text: &[u8]) -> io::Result<()> {
    let mut out = fs::OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(file)?;
    io::Write::write_all(&mut out, text)?;
    out.sync_data()
}
