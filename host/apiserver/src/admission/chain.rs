//! Whoever may change a request besides the server itself: mutating policies, then mutating webhooks.
//!
//! Each sees what those before it made of the object. When somebody later changed it, those that ask for it get a
//! second look, once.

use std::{collections::BTreeSet, sync::Arc};

use wasmk_api::{Object, Status};

use super::{
    Hook, Plugin,
    mutations::{self, Bound},
    webhooks,
};
use crate::write::{Mode, Work};

/// One that may change a request.
enum Step {
    Policy(Bound),
    Hook(Arc<Hook>),
}

impl Step {
    fn again(&self) -> bool {
        match self {
            Self::Policy(bound) => bound.applied_again(),
            Self::Hook(hook) => hook.asked_again(),
        }
    }

    async fn take(
        &self,
        work: &Work<'_>,
        subresource: &str,
        object: Option<&mut Object>,
        old: Option<&Object>,
        turn: (usize, usize),
    ) -> Result<bool, Status> {
        match (self, object) {
            (Self::Hook(hook), object) => hook.mutate(work, subresource, object, old, turn).await,
            (Self::Policy(bound), Some(object)) => bound.mutate(work, subresource, object, old).await,
            // Nothing is left to change of what is deleted.
            (Self::Policy(_), None) => Ok(false),
        }
    }
}

fn steps(work: &Work<'_>) -> Vec<Step> {
    if super::is_exempt(work.resource) {
        return Vec::new();
    }
    let on = |plugin| work.core.config.admission.has(plugin);
    let mut all = Vec::new();
    if on(Plugin::MutatingAdmissionPolicy) {
        all.extend(mutations::bound(work.core).into_iter().map(Step::Policy));
    }
    if on(Plugin::MutatingAdmissionWebhook) {
        all.extend(webhooks::registered(work.core, webhooks::MUTATING).into_iter().map(Step::Hook));
    }
    all
}

/// Lets policies and webhooks change an object (absent: it is deleted).
///
/// # Errors
/// When one refuses it.
pub(super) async fn mutate(
    work: &Work<'_>,
    mut object: Option<&mut Object>,
    old: Option<&Object>,
    mode: Mode,
) -> Result<(), Status> {
    let steps = steps(work);
    if steps.is_empty() {
        return Ok(());
    }
    let owners = object.as_deref().and_then(|o| o.metadata()?.get("managedFields").cloned());
    let mut again = first_round(work, &steps, mode.subresource(), object.as_deref_mut(), old).await?;
    let Some(object) = object else { return Ok(()) };
    if again.changed {
        let before = object.clone();
        super::own_steps(work, object, old, mode)?;
        if *object != before {
            again.due.extend(again.taken);
        }
    }
    for at in again.due {
        steps[at].take(work, mode.subresource(), Some(&mut *object), old, (1, at)).await?;
    }
    // Who set which fields is the server's to say.
    object.set_meta("managedFields", owners.unwrap_or_default());
    Ok(())
}

/// The same for an object that is sent to a subresource and has no steps of the server's own.
///
/// # Errors
/// When one refuses it.
pub(super) async fn mutate_as(
    work: &Work<'_>,
    subresource: &str,
    mut object: Option<&mut Object>,
    old: Option<&Object>,
) -> Result<(), Status> {
    let steps = steps(work);
    let again = first_round(work, &steps, subresource, object.as_deref_mut(), old).await?;
    for at in again.due {
        steps[at].take(work, subresource, object.as_deref_mut(), old, (1, at)).await?;
    }
    Ok(())
}

/// What the first round came to, as places in the list of steps.
#[derive(Default)]
struct Again {
    changed: bool,
    /// Those that took part and want to know of later changes.
    taken: Vec<usize>,
    /// Those of them after which somebody changed the object.
    due: BTreeSet<usize>,
}

async fn first_round(
    work: &Work<'_>,
    steps: &[Step],
    subresource: &str,
    mut object: Option<&mut Object>,
    old: Option<&Object>,
) -> Result<Again, Status> {
    let mut again = Again::default();
    for (at, step) in steps.iter().enumerate() {
        let before = object.as_deref().cloned();
        if !step.take(work, subresource, object.as_deref_mut(), old, (0, at)).await? {
            continue;
        }
        if object.as_deref() != before.as_ref() {
            again.changed = true;
            again.due.extend(&again.taken);
        }
        if step.again() {
            again.taken.push(at);
        }
    }
    Ok(again)
}
