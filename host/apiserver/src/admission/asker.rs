//! What expressions ask of the authorizers about a request.
//!
//! Expressions run without waiting, and a webhook that authorizes must be waited for. A check it may be asked
//! about is noted and fails the expression; the caller finds out and runs its expressions again.

use std::{collections::HashMap, sync::Arc};

use futures::FutureExt;
use parking_lot::Mutex;
use wasmk_api::FieldSelector;
use wasmk_machinery::cel::{Check, Decider, Verdict};

use crate::{
    auth::{Attributes, User},
    authorize,
    server::Core,
};

/// Most checks of one expression, as in Kubernetes, where each has a large part of what an expression may cost.
const MAX_CHECKS: u32 = 2;
/// Most different checks about one request.
const MAX_KNOWN: usize = 256;

/// Asks the authorizers about one request.
pub(crate) struct Asker {
    core: Arc<Core>,
    user: Arc<User>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    known: HashMap<Check, Verdict>,
    wanted: Vec<Check>,
    /// Checks of the expression that runs.
    checks: u32,
}

impl Asker {
    /// For requests of a user.
    pub(crate) fn new(core: &Arc<Core>, user: &Arc<User>) -> Arc<Self> {
        Arc::new(Self { core: core.clone(), user: user.clone(), state: Mutex::default() })
    }

    /// An expression begins, with checks of its own.
    pub(super) fn begin(&self) {
        self.state.lock().checks = 0;
    }

    /// Whether an expression failed because an answer must be waited for.
    pub(super) fn waits(&self) -> bool {
        !self.state.lock().wanted.is_empty()
    }

    /// Finds out what expressions wanted to know; whether there was anything, and they are to run again.
    pub(super) async fn find_out(&self) -> bool {
        let wanted = std::mem::take(&mut self.state.lock().wanted);
        for check in &wanted {
            let verdict = self.ask(check).await;
            self.state.lock().known.insert(check.clone(), verdict);
        }
        !wanted.is_empty()
    }

    async fn ask(&self, check: &Check) -> Verdict {
        let account = check.account.as_ref().map(|(namespace, name)| User::service_account(namespace, name));
        let user = account.as_ref().unwrap_or(&self.user);
        let fields = FieldSelector::parse(&check.field_selector).unwrap_or_default();
        let asked = Attributes {
            verb: &check.verb,
            group: &check.group,
            version: "*",
            resource: &check.resource,
            subresource: &check.subresource,
            namespace: &check.namespace,
            name: &check.name,
            path: &check.path,
            is_resource: check.path.is_empty(),
            on_node: fields.required("spec.nodeName").unwrap_or(""),
        };
        let decision = authorize::decide(&self.core, user, &asked).await;
        Verdict { allowed: decision.allowed, reason: decision.reason.to_string(), error: String::new() }
    }
}

impl Decider for Asker {
    fn decide(&self, check: &Check) -> Result<Verdict, String> {
        let mut state = self.state.lock();
        state.checks += 1;
        if state.checks > MAX_CHECKS || state.known.len() >= MAX_KNOWN {
            return Err("operation cancelled: actual cost limit exceeded".into());
        }
        if let Some(verdict) = state.known.get(check) {
            return Ok(verdict.clone());
        }
        if self.core.authorizers.may_wait() {
            state.wanted.push(check.clone());
            return Err("the answer is not known yet".into());
        }
        // Nobody who is asked waits for anything.
        let verdict = self.ask(check).now_or_never().ok_or("the answer is not known yet")?;
        state.known.insert(check.clone(), verdict.clone());
        Ok(verdict)
    }
}
