//! The loop of one pod: look, plan, do, write down, wait for news. It alone changes the
//! pod's state; runs, probes and writes report back to it.

mod leave;
mod runs;

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::{
    sync::{Notify, mpsc, watch},
    task::{AbortHandle, JoinSet},
};
use wasmk_api::{
    Timestamp,
    k8s_openapi::api::core::v1::{Pod, PodStatus},
};
use wasmk_runtime::StopSignal;

use super::{
    container::{First, Progress},
    plan::{Action, is_over, plan},
    setup::{self, Placed, SetUp},
    state::{PodState, Setup, Verdict},
    volumes,
};
use crate::{context::Context, engine::Failure, events::Level, static_pods};

/// Messages from runs that wait for the loop at most.
const NEWS: usize = 32;
/// Wait before a write to the API is tried again.
const WRITE_RETRY: Duration = Duration::from_secs(2);
/// Longest time for one write to the API.
const WRITE_LIMIT: Duration = Duration::from_secs(15);
/// Wait before a pod's surroundings are made again.
const SETUP_RETRY: Duration = Duration::from_secs(5);
/// How often volumes that follow the API are brought up to date.
const REFRESH: Duration = Duration::from_secs(45);
/// How long a new pod may take to run before the API is told that it is about to: most run sooner, and need one
/// write less.
const BEGINNING: Duration = Duration::from_secs(1);
/// Plans in a row without waiting for news; more would mean plans that do not settle.
const MAX_STEPS: usize = 16;

/// What the rest of the agent tells a pod's loop.
#[derive(Clone)]
pub(crate) enum Wish {
    /// The pod as it now is in the API.
    Pod(Arc<Pod>),
    /// The pod takes too much and is to end; says of what.
    Evict(String),
    /// The pod is no longer in the API.
    Gone,
    /// The agent ends; what runs is stopped but stays on record.
    Quit,
}

/// A running loop.
pub(crate) struct Handle {
    wish: watch::Sender<Wish>,
    forgotten: Arc<Notify>,
    task: tokio::task::JoinHandle<()>,
}

impl Handle {
    /// Tells the loop the newest wish; only the last one counts.
    pub(crate) fn tell(&self, wish: Wish) {
        self.wish.send_replace(wish);
    }

    /// Tells the loop that the API has lost the pod's status, so that it writes it again.
    pub(crate) fn forgotten(&self) {
        self.forgotten.notify_one();
    }

    /// Whether the loop is over.
    pub(crate) fn is_done(&self) -> bool {
        self.task.is_finished()
    }

    /// Waits for the loop's end.
    pub(crate) async fn ended(&mut self) {
        // A panic was logged by the runtime; the loop is over either way.
        let _ = (&mut self.task).await;
    }
}

/// Starts the loop of a pod; `state` is what is known from disk.
pub(crate) fn spawn(cx: Arc<Context>, pod: Arc<Pod>, state: Option<PodState>) -> Handle {
    let (wish, wishes) = watch::channel(Wish::Pod(pod.clone()));
    let now = Timestamp::now();
    let arrived = state.is_none().then(tokio::time::Instant::now);
    let state = match state {
        Some(mut state) => {
            state.resume(now);
            state
        }
        None => PodState::adopt(&pod, now),
    };
    let (news_in, news) = mpsc::channel(NEWS);
    let worker = Worker {
        written: pod.status.clone().unwrap_or_default(),
        synced: false,
        stale: false,
        jobs: JoinSet::new(),
        busy: Busy::default(),
        retry_at: None,
        runs: HashMap::new(),
        next_run: 0,
        arrived,
        firsts: HashMap::new(),
        released: false,
        news_in,
        state,
        pod,
        cx,
    };
    let forgotten = Arc::new(Notify::new());
    Handle { wish, forgotten: forgotten.clone(), task: tokio::spawn(worker.work(wishes, news, forgotten)) }
}

struct Worker {
    cx: Arc<Context>,
    pod: Arc<Pod>,
    state: PodState,
    /// The status last known to be in the API.
    written: PodStatus,
    /// This agent wrote `written` itself.
    synced: bool,
    /// The write under way may go to an object that is no longer there.
    stale: bool,
    jobs: JoinSet<Done>,
    busy: Busy,
    /// Writes to the API rest until then.
    retry_at: Option<tokio::time::Instant>,
    runs: HashMap<String, Live>,
    next_run: u64,
    /// When the pod came to this node, until all of it runs.
    arrived: Option<tokio::time::Instant>,
    /// Containers that nobody has tried to start in the sandbox since it was made.
    firsts: HashMap<String, First>,
    /// Everything the pod held is freed.
    released: bool,
    news_in: mpsc::Sender<(String, u64, Progress)>,
}

/// Jobs under way, one of each kind at most.
#[derive(Default)]
struct Busy {
    writing: bool,
    deleting: bool,
    refreshing: bool,
    discarding: bool,
    unmounting: bool,
}

struct Live {
    number: u64,
    stop: StopSignal,
    task: AbortHandle,
}

/// A job of the loop that is over.
enum Done {
    Setup(Placed, Result<(), Failure>),
    /// The sandbox of a pod that is over is gone, or not yet.
    Discarded(Result<(), wasmk_cri::Error>),
    /// The volumes of storage drivers that a pod had are free, or not yet.
    Unmounted(Result<(), String>),
    Refreshed(Result<(), Failure>),
    Written(Box<PodStatus>, Result<(), kube::Error>),
    Deleted(Result<(), String>),
    /// A run's task; it reported by itself.
    Run,
}

impl Worker {
    async fn work(
        mut self,
        mut wishes: watch::Receiver<Wish>,
        mut news: mpsc::Receiver<(String, u64, Progress)>,
        forgotten: Arc<Notify>,
    ) {
        let mut refresh = tokio::time::interval_at(tokio::time::Instant::now() + REFRESH, REFRESH);
        loop {
            let wish = wishes.borrow_and_update().clone();
            match wish {
                Wish::Pod(pod) => self.pod = pod,
                Wish::Evict(message) => self.evict(message),
                Wish::Gone => return self.gone(),
                Wish::Quit => return self.quit().await,
            }
            let wake = self.step();
            if self.busy_until_gone() {
                if static_pods::is_static(&self.pod) {
                    // The API has only its mirror, whose end says nothing.
                    return;
                }
                // Deleted in the API, freed here; a finalizer may keep the object for long.
                if wishes.changed().await.is_err() {
                    return;
                }
                continue;
            }
            let wake = self.sooner(wake);
            tokio::select! {
                changed = wishes.changed() => if changed.is_err() { return },
                Some((container, number, progress)) = news.recv() => self.hear(&container, number, progress),
                Some(done) = self.jobs.join_next() => self.finish(done),
                () = forgotten.notified() => self.write_anew(),
                () = sleep_until(wake) => {}
                _ = refresh.tick() => self.refresh(),
            }
        }
    }

    fn evict(&mut self, message: String) {
        if self.state.verdict.is_some() || self.state.settled {
            return;
        }
        self.cx.events.pod(&self.pod, Level::Warning, "Evicted", &message);
        self.state.verdict = Some(Verdict { reason: "Evicted".into(), message });
    }

    fn busy_until_gone(&self) -> bool {
        self.released && !self.busy.deleting && !self.busy.writing && self.retry_at.is_none()
    }

    fn sooner(&self, wake: Option<Timestamp>) -> Option<tokio::time::Instant> {
        let now = Timestamp::now();
        let planned = wake.map(|w| tokio::time::Instant::now() + w.since(now) + Duration::from_millis(1));
        [planned, self.retry_at, self.begins_until()].into_iter().flatten().min()
    }

    /// Until when the API need not know that the pod is about to run.
    fn begins_until(&self) -> Option<tokio::time::Instant> {
        self.arrived.map(|at| at + BEGINNING).filter(|until| *until > tokio::time::Instant::now())
    }

    /// Plans and does until there is nothing to do now; when to look again.
    fn step(&mut self) -> Option<Timestamp> {
        if self.retry_at.is_some_and(|at| at <= tokio::time::Instant::now()) {
            self.retry_at = None;
        }
        let mut wake = None;
        for _ in 0..MAX_STEPS {
            let now = Timestamp::now();
            let next = plan(&self.pod, &self.state, now);
            wake = next.wake;
            let remove = next.actions == [Action::Remove];
            for action in next.actions {
                self.act(action, now);
            }
            if remove || plan(&self.pod, &self.state, now).actions.is_empty() {
                break;
            }
        }
        self.free_address_when_over();
        if !self.released
            && let Err(error) = self.cx.records.save(self.uid(), &self.pod, &self.state)
        {
            tracing::warn!(pod = %self.name(), %error, "cannot keep the record of a pod");
        }
        self.write_status();
        wake
    }

    fn act(&mut self, action: Action, now: Timestamp) {
        match action {
            Action::Setup => self.set_up(),
            Action::Adopt(container) => self.adopt(&container),
            Action::Start(container) => self.start(&container),
            Action::Stop { container, grace, why } => self.stop(&container, grace, &why, now),
            Action::Kill(container) => self.kill(&container, now),
            Action::Fail { reason, message } => {
                self.cx.events.pod(&self.pod, Level::Normal, &reason, &message);
                self.state.verdict = Some(Verdict { reason, message });
            }
            Action::Remove => self.remove(),
        }
    }

    fn name(&self) -> String {
        let part = |s: &Option<String>| s.clone().unwrap_or_default();
        format!("{}/{}", part(&self.pod.metadata.namespace), part(&self.pod.metadata.name))
    }

    fn set_up(&mut self) {
        // Were it forgotten, the runtime would refuse a second sandbox of that number, and the next attempt look.
        let untried = self.arrived.is_some() && self.state.setup == Setup::None;
        let new = untried && self.pod.status.as_ref().is_none_or(|status| status.start_time.is_none());
        self.state.setup = Setup::Underway;
        let work = SetUp {
            cx: self.cx.clone(),
            pod: self.pod.clone(),
            dir: self.cx.records.pod_dir(self.uid()),
            ip: self.state.ip,
            sandbox: self.state.sandbox.clone(),
            new,
        };
        self.jobs.spawn(async move {
            let (placed, outcome) = work.go().await;
            Done::Setup(placed, outcome)
        });
    }

    /// Takes over what the pod has got.
    fn placed(&mut self, mut placed: Placed, outcome: Result<(), Failure>, now: Timestamp) {
        (self.state.ip, self.state.sandbox) = (placed.ip, placed.sandbox);
        if placed.fresh {
            let spec = self.pod.spec.iter();
            let all = spec.flat_map(|s| s.init_containers.iter().flatten().chain(&s.containers));
            let mut first = |name: &String| First { choice: placed.looked.remove(name) };
            self.firsts = all.map(|c| &c.name).map(|name| (name.clone(), first(name))).collect();
            let lost = self.state.containers.values_mut().filter(|c| c.orphan);
            for container in lost {
                container.orphan = false;
                container.end(137, "ContainerStatusUnknown", "the container was lost with its sandbox", now);
            }
        }
        match outcome {
            Ok(()) => self.state.setup = Setup::Done,
            Err(failure) => {
                self.cx.events.pod(&self.pod, Level::Warning, failure.reason, &failure.message);
                let until = now.after(SETUP_RETRY);
                self.state.setup = Setup::Failed { message: failure.message, until };
            }
        }
    }

    /// A pod that has ended needs its address no longer; its status goes on showing it.
    fn free_address_when_over(&mut self) {
        let over = self.state.settled
            || self.state.verdict.is_some()
            || self.pod.spec.as_ref().is_some_and(|s| is_over(s, &self.state));
        if over && self.runs.is_empty() {
            if let Some(pool) = &*self.cx.addresses.borrow() {
                pool.give_back(self.uid());
            }
            self.cx.running.clear_ports(self.uid());
            self.discard_sandbox();
            self.unmount();
        }
    }

    /// Nothing uses the pod's devices and its volumes of storage drivers any longer: others may want them.
    fn unmount(&mut self) {
        self.cx.devices.release(self.uid());
        // One that is deleted frees them on its way out.
        let stays = self.pod.metadata.deletion_timestamp.is_none();
        let free = self.state.sandbox.is_none() && self.state.setup != Setup::Underway;
        let free = free && stays && self.retry_at.is_none();
        if self.busy.unmounting || self.released || !free || !self.cx.csi.holds(self.uid()) {
            return;
        }
        self.busy.unmounting = true;
        let (csi, uid) = (self.cx.csi.clone(), self.uid().to_string());
        self.jobs.spawn(async move { Done::Unmounted(csi.unmount(&uid).await) });
    }

    /// Nothing runs in the pod's sandbox any longer, and nothing will.
    fn discard_sandbox(&mut self) {
        let wanted =
            !self.busy.discarding && !self.released && self.pod.metadata.deletion_timestamp.is_none();
        let (Some(sandbox), Some(containers)) = (&self.state.sandbox, &self.cx.containers) else { return };
        if !wanted || self.state.containers.values().any(|c| c.orphan) {
            return;
        }
        self.busy.discarding = true;
        let (containers, id) = (containers.clone(), sandbox.id.clone());
        self.cx.running.set_namespace(self.uid(), None);
        self.jobs.spawn(async move { Done::Discarded(containers.discard(&id).await) });
    }

    fn uid(&self) -> &str {
        self.pod.metadata.uid.as_deref().unwrap_or_default()
    }

    fn volumes_job(&self) -> impl Future<Output = Result<(), Failure>> + Send + 'static {
        let (cx, pod, dir) =
            (self.cx.clone(), self.pod.clone(), self.cx.records.pod_dir(self.uid()).join("volumes"));
        let place = setup::place(&cx, &pod, self.state.ip);
        async move { setup::make_volumes(&cx, &pod, &dir, &place).await }
    }

    fn refresh(&mut self) {
        let wanted = self.state.setup == Setup::Done && !self.runs.is_empty();
        if !wanted
            || self.busy.refreshing
            || !(volumes::follows_api(&self.pod) || self.cx.csi.holds(self.uid()))
        {
            return;
        }
        self.busy.refreshing = true;
        let work = self.volumes_job();
        self.jobs.spawn(async move { Done::Refreshed(work.await) });
    }

    fn finish(&mut self, done: Result<Done, tokio::task::JoinError>) {
        let now = Timestamp::now();
        match done {
            Ok(Done::Run) => {}
            Ok(Done::Setup(placed, outcome)) => self.placed(placed, outcome, now),
            Ok(Done::Discarded(outcome)) => self.discarded(outcome),
            Ok(Done::Unmounted(outcome)) => {
                self.busy.unmounting = false;
                if let Err(error) = outcome {
                    tracing::debug!(pod = %self.name(), error, "cannot free a pod's volumes yet");
                    self.retry_at = Some(tokio::time::Instant::now() + WRITE_RETRY);
                }
            }
            Ok(Done::Refreshed(outcome)) => {
                self.busy.refreshing = false;
                if let Err(failure) = outcome {
                    self.cx.events.pod(&self.pod, Level::Warning, failure.reason, &failure.message);
                }
            }
            Ok(Done::Written(status, outcome)) => {
                self.busy.writing = false;
                self.wrote(*status, outcome);
            }
            Ok(Done::Deleted(outcome)) => {
                self.busy.deleting = false;
                if let Err(error) = outcome {
                    tracing::debug!(pod = %self.name(), %error, "cannot delete a pod that is stopped");
                    self.retry_at = Some(tokio::time::Instant::now() + WRITE_RETRY);
                }
            }
            Err(error) if error.is_cancelled() => {}
            Err(error) => {
                tracing::error!(pod = %self.name(), %error, "a task of a pod broke");
                self.lost_runs(now);
            }
        }
    }

    fn discarded(&mut self, outcome: Result<(), wasmk_cri::Error>) {
        self.busy.discarding = false;
        match outcome {
            Ok(()) => self.state.sandbox = None,
            Err(error) => {
                tracing::debug!(pod = %self.name(), %error, "cannot remove a sandbox yet");
                self.retry_at = Some(tokio::time::Instant::now() + WRITE_RETRY);
            }
        }
    }
}

async fn sleep_until(when: Option<tokio::time::Instant>) {
    match when {
        Some(when) => tokio::time::sleep_until(when).await,
        None => std::future::pending().await,
    }
}
