//! Gives every namespace its service account `default`.
//!
//! Reads namespaces and service accounts. Creates service accounts, never changes one.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use kube::api::ObjectMeta;

use crate::base::{Context, Informer, Key, Next, Queue, Result, is_deleting, on_change};

const NAME: &str = "default";

pub(crate) async fn run(cx: Context) {
    let queue = Arc::new(Queue::default());
    let (namespaces, accounts) = (cx.cache::<Namespace>(), cx.cache::<ServiceAccount>());
    on_change(&namespaces, &queue);
    let sink = queue.clone();
    accounts.subscribe(move |old, new| {
        if let (Some(gone), None) = (old, new) {
            sink.add(Key::new("", gone.metadata.namespace.clone().unwrap_or_default()));
        }
    });
    namespaces.ready().await;
    accounts.ready().await;
    cx.work("serviceaccount-controller", &queue, cx.settings.workers, |key| {
        reconcile(&cx, &namespaces, &accounts, key)
    })
    .await;
}

async fn reconcile(
    cx: &Context,
    namespaces: &Informer<Namespace>,
    accounts: &Informer<ServiceAccount>,
    key: Key,
) -> Result<Next> {
    let alive = namespaces.get(&key).is_some_and(|n| !is_deleting(&*n));
    if !alive || accounts.get(&Key::new(&*key.name, NAME)).is_some() {
        return Ok(Next::Change);
    }
    let account = ServiceAccount {
        metadata: ObjectMeta { namespace: Some(key.name), name: Some(NAME.into()), ..Default::default() },
        ..Default::default()
    };
    match cx.create(&account).await {
        Err(error) if error.is_already_exists() || error.is_namespace_terminating() => Ok(Next::Change),
        other => other.map(|_| Next::Change),
    }
}
