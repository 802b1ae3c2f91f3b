//! Versions of a pod template, kept as ControllerRevisions: what DaemonSets and
//! StatefulSets have in common.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::{
    api::{apps::v1::ControllerRevision, core::v1::PodTemplateSpec},
    apimachinery::pkg::runtime::RawExtension,
};
use kube::api::ObjectMeta;
use serde_json::{Value, json};
use wasmk_api::LabelSelector;

use crate::base::{Claim, Context, Key, Result, Watched, controller_of, controller_ref, hash, uid};

/// The revision's hash, on revisions and pods.
pub(crate) const HASH: &str = "controller-revision-hash";

/// Revisions of one owner, oldest first. The last is the one of the current template.
pub(crate) struct History {
    pub(crate) all: Vec<Arc<ControllerRevision>>,
    /// The revision that equals the current template.
    pub(crate) current: Arc<ControllerRevision>,
    /// How often a hash was taken by another template.
    pub(crate) collisions: i32,
}

/// Reads the owner's revisions and adds one if its template is new; an older one that
/// equals it is moved to the front.
///
/// # Errors
/// When the API refuses; the next pass begins anew.
pub(crate) async fn sync<O: Watched>(
    cx: &Context,
    owner: &O,
    selector: &LabelSelector,
    template: &PodTemplateSpec,
    mut collisions: i32,
) -> Result<History> {
    let revisions = cx.cache::<ControllerRevision>();
    let mut all = Claim::apply(cx, owner, selector, &revisions).await?;
    all.sort_by_key(|r| (r.revision, r.metadata.name.clone()));
    let data = patch_of(template);
    let next = all.last().map_or(1, |r| r.revision + 1);
    let equal = all.iter().rposition(|r| r.data.as_ref().is_some_and(|d| d.0 == data));
    if let Some(at) = equal {
        let mut current = all.remove(at);
        if at < all.len() {
            let mut moved = (*current).clone();
            moved.revision = next;
            current = cx.replace(&moved).await?;
        }
        all.push(current.clone());
        return Ok(History { all, current, collisions });
    }
    let labels = template.metadata.as_ref().and_then(|m| m.labels.clone()).unwrap_or_default();
    let wanted = revision(owner, data.clone(), labels, next, collisions);
    let current = match cx.create(&wanted).await {
        Err(error) if error.is_already_exists() => {
            let there = cx.fetch::<ControllerRevision>(&Key::of(&wanted.metadata)).await?;
            let ours = there.filter(|r| {
                r.data.as_ref().is_some_and(|d| d.0 == data)
                    && controller_of(&**r).is_some_and(|o| o.uid == uid(owner))
            });
            match ours {
                Some(ours) => ours,
                None => {
                    collisions += 1;
                    cx.create(&revision(owner, data, BTreeMap::new(), next, collisions)).await?
                }
            }
        }
        other => other?,
    };
    all.push(current.clone());
    Ok(History { all, current, collisions })
}

/// The template as a patch that puts it back, which is how kubectl undoes a rollout.
fn patch_of(template: &PodTemplateSpec) -> Value {
    let mut template = serde_json::to_value(template).unwrap_or_default();
    template["$patch"] = json!("replace");
    json!({"spec": {"template": template}})
}

/// The template of a revision.
pub(crate) fn template_of(revision: &ControllerRevision) -> Option<PodTemplateSpec> {
    let mut template = revision.data.as_ref()?.0.get("spec")?.get("template")?.clone();
    template.as_object_mut()?.remove("$patch");
    serde_json::from_value(template).ok()
}

fn revision<O: Watched>(
    owner: &O,
    data: Value,
    mut labels: BTreeMap<String, String>,
    number: i64,
    collisions: i32,
) -> ControllerRevision {
    let hash = hash(&format!("{data}#{collisions}"));
    labels.insert(HASH.into(), hash.clone());
    ControllerRevision {
        metadata: ObjectMeta {
            namespace: owner.meta().namespace.clone(),
            name: Some(format!("{}-{hash}", owner.meta().name.as_deref().unwrap_or(""))),
            labels: Some(labels),
            annotations: owner.meta().annotations.clone().map(|mut notes| {
                notes.remove("kubectl.kubernetes.io/last-applied-configuration");
                notes
            }),
            owner_references: Some(vec![controller_ref(owner)]),
            ..Default::default()
        },
        data: Some(RawExtension(data)),
        revision: number,
    }
}

/// The hash label of a revision.
pub(crate) fn hash_of(revision: &ControllerRevision) -> &str {
    revision.metadata.labels.as_ref().and_then(|l| l.get(HASH)).map_or("", String::as_str)
}

/// Deletes revisions beyond the limit that no pod uses, oldest first.
///
/// # Errors
/// When the API refuses.
pub(crate) async fn trim(
    cx: &Context,
    history: &History,
    in_use: impl Fn(&ControllerRevision) -> bool,
    limit: i32,
) -> Result<()> {
    let current = uid(&*history.current);
    let idle: Vec<_> = history.all.iter().filter(|r| uid(&***r) != current && !in_use(r)).collect();
    let extra = idle.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
    for revision in idle.into_iter().take(extra) {
        cx.delete(&**revision, Default::default()).await?;
    }
    Ok(())
}
