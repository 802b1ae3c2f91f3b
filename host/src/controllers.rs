//! Controllers and scheduler: on a store that several servers share, in one of them at a time.

use std::{convert::Infallible, time::Duration};

use kube::Client;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use wasmk_controllers::{
    Accounts, Clock, Context, Result, Settings,
    election::{self, Election},
    run_in, scheduler,
};

use crate::{bootstrap::Leading, renewal::Authority};

/// The lease of the server that runs them.
const LEASE: &str = "kube-controller-manager";

/// Time before a write is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// What they are started with.
#[derive(Clone)]
pub(crate) struct Control {
    /// The controllers' own client.
    pub(crate) client: Client,
    /// The scheduler's.
    pub(crate) scheduler: Client,
    /// Clients of the controllers' service accounts.
    pub(crate) accounts: Accounts,
    pub(crate) settings: Settings,
    /// How nodes are chosen.
    pub(crate) profiles: scheduler::Settings,
    /// What they sign by and publish.
    pub(crate) signer: watch::Receiver<Authority>,
    /// The services that are to lead here while this server leads.
    pub(crate) leading: Leading,
}

impl Control {
    /// Runs controllers and scheduler until `stop`; with `shared`, while this server holds the lease.
    pub(crate) async fn run(self, shared: bool, stop: CancellationToken) -> Result<()> {
        if !shared {
            return self.work(stop).await;
        }
        let election = Election::new(LEASE, identity());
        let work = |term| {
            let control = self.clone();
            async move {
                let publishing = publish(control.leading.clone());
                tokio::select! {
                    ended = control.work(term) => ended,
                    never = publishing => match never {},
                }
            }
        };
        election::lead(self.client.clone(), &election, Clock::System, stop, work).await
    }

    /// Runs them, anew when the authority has changed.
    async fn work(mut self, stop: CancellationToken) -> Result<()> {
        loop {
            let authority = self.signer.borrow_and_update().clone();
            let settings = Settings {
                ca_pem: authority.trusted,
                signer_pem: authority.signing.cert,
                ca_key_pem: authority.signing.key,
                token_key_pem: authority.tokens,
                ..self.settings.clone()
            };
            let until = stop.child_token();
            let cx = Context::new(self.client.clone(), settings, Clock::System, until.clone());
            let cx = Context { accounts: Some(self.accounts.clone()), ..cx };
            // The scheduler sees through the same caches and writes under a name of its own.
            let scheduling = Context { client: self.scheduler.clone(), ..cx.clone() };
            let run =
                async { tokio::try_join!(run_in(cx), scheduler::run_in(scheduling, self.profiles.clone())) };
            tokio::pin!(run);
            let changed = async {
                if self.signer.changed().await.is_err() {
                    // Nobody renews; the authority stays.
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! {
                ended = &mut run => return ended.map(drop),
                () = changed => {}
            }
            until.cancel();
            run.await?;
        }
    }
}

/// Makes services lead here, and goes on trying until they do.
async fn publish(leading: Leading) -> Infallible {
    while let Err(error) = leading.write().await {
        tracing::warn!(
            error = format!("{error:#}"),
            "cannot write the services of the DNS server and the gateway; trying again"
        );
        tokio::time::sleep(RETRY).await;
    }
    std::future::pending().await
}

/// Who this process is among all that share the store.
fn identity() -> String {
    let host = nix::unistd::gethostname().map(|h| h.to_string_lossy().into_owned()).unwrap_or_default();
    format!("{host}_{:032x}", rand::random::<u128>())
}
