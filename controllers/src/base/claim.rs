//! Who belongs to whom: adoption and release by selector.

use std::sync::Arc;

use kube::Resource;
use wasmk_api::LabelSelector;

use super::{Context, Informer, Result, Watched, controller_of, controller_ref, is_deleting, uid};

/// How a controller's children stand after looking at selectors.
#[derive(Debug, Default)]
pub struct Claimed<C> {
    /// Children: controlled by the owner and matching.
    pub own: Vec<Arc<C>>,
    /// Nobody's, but matching: to be adopted.
    pub adopt: Vec<Arc<C>>,
    /// Controlled by the owner, but not matching any more: to be released.
    pub release: Vec<Arc<C>>,
}

/// Sorts candidates by selector. An owner on its way out neither adopts nor releases.
pub struct Claim;

impl Claim {
    /// Decides about `candidates` of the owner's namespace.
    pub fn plan<C: Resource>(
        owner: &str,
        deleting: bool,
        selector: &LabelSelector,
        candidates: impl IntoIterator<Item = Arc<C>>,
    ) -> Claimed<C> {
        let mut claimed = Claimed { own: Vec::new(), adopt: Vec::new(), release: Vec::new() };
        for child in candidates {
            let matches = selector.matches(child.meta().labels.as_ref());
            match controller_of(&*child).map(|r| r.uid == owner) {
                Some(true) if matches || deleting => claimed.own.push(child),
                Some(true) => claimed.release.push(child),
                None if matches && !deleting && !is_deleting(&*child) => claimed.adopt.push(child),
                Some(false) | None => {}
            }
        }
        claimed
    }

    /// The owner's children, after adopting and releasing what has to be.
    ///
    /// # Errors
    /// When the API refuses; the next pass begins anew.
    pub async fn apply<O: Watched, C: Watched>(
        cx: &Context,
        owner: &O,
        selector: &LabelSelector,
        children: &Informer<C>,
    ) -> Result<Vec<Arc<C>>> {
        let namespace = owner.meta().namespace.as_deref().unwrap_or("");
        let mut candidates = children.controlled_by(uid(owner));
        // An empty selector adopts nothing: it would take everything.
        if !selector.is_empty() {
            candidates.extend(children.orphans(namespace));
        }
        let claimed = Self::plan(uid(owner), is_deleting(owner), selector, candidates);
        for child in &claimed.release {
            cx.release(&**child, uid(owner)).await?;
        }
        let mut own = claimed.own;
        if claimed.adopt.is_empty() {
            return Ok(own);
        }
        // The cache may not yet know that the owner is going: ask before taking anything.
        let key = super::Key::of(owner.meta());
        let live = cx.fetch::<O>(&key).await?;
        if live.is_none_or(|o| uid(&*o) != uid(owner) || is_deleting(&*o)) {
            return Ok(own);
        }
        for child in claimed.adopt {
            match cx.adopt(&*child, &controller_ref(owner)).await {
                Ok(()) => own.extend(children.get(&super::Key::of(child.meta()))),
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        own.sort_by(|a, b| a.meta().name.cmp(&b.meta().name));
        Ok(own)
    }
}
