//! The gateway's own threads: a request does not wait behind a controller's pass or a list of the API, which
//! share theirs.

use std::io;

use tokio::runtime::{Builder, Handle, Runtime};

/// As many threads as there are processors, ended when dropped.
pub(super) struct Threads(Option<Runtime>);

impl Threads {
    pub(super) fn start() -> io::Result<Self> {
        let runtime = Builder::new_multi_thread().thread_name("gateway").enable_all().build()?;
        Ok(Self(Some(runtime)))
    }

    pub(super) fn handle(&self) -> &Handle {
        self.0.as_ref().expect("only dropping takes it").handle()
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            // Whoever drops it may be a task itself, which must not wait.
            runtime.shutdown_background();
        }
    }
}
