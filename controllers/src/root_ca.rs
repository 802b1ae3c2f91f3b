//! Publishes the API's root certificate to every namespace as ConfigMap `kube-root-ca.crt`.
//!
//! Reads namespaces and the config maps of that name. Creates and repairs those.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::api::ObjectMeta;

use crate::base::{Context, Informer, Key, Next, Queue, Result, is_deleting, on_change};

const NAME: &str = "kube-root-ca.crt";
const FIELD: &str = "ca.crt";
const ABOUT: (&str, &str) = (
    "kubernetes.io/description",
    "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as \
     the internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of \
     Kubernetes clusters.",
);

pub(crate) async fn run(cx: Context) {
    if cx.settings.ca_pem.is_empty() {
        return;
    }
    let queue = Arc::new(Queue::default());
    let (namespaces, maps) = (cx.cache::<Namespace>(), cx.cache::<ConfigMap>());
    on_change(&namespaces, &queue);
    let sink = queue.clone();
    maps.subscribe(move |old, new| {
        if let Some(map) = old.or(new) {
            sink.add(Key::new("", map.metadata.namespace.clone().unwrap_or_default()));
        }
    });
    namespaces.ready().await;
    maps.ready().await;
    cx.work("root-ca-certificate-publisher-controller", &queue, cx.settings.workers, |key| {
        reconcile(&cx, &namespaces, &maps, key)
    })
    .await;
}

async fn reconcile(
    cx: &Context,
    namespaces: &Informer<Namespace>,
    maps: &Informer<ConfigMap>,
    key: Key,
) -> Result<Next> {
    if namespaces.get(&key).is_none_or(|n| is_deleting(&*n)) {
        return Ok(Next::Change);
    }
    let there = maps.get(&Key::new(&*key.name, NAME));
    let Some(wanted) = plan(&key.name, there.as_deref(), &cx.settings.ca_pem) else {
        return Ok(Next::Change);
    };
    let outcome = match there {
        Some(_) => cx.replace(&wanted).await,
        None => cx.create(&wanted).await,
    };
    match outcome {
        Err(error) if error.is_already_exists() || error.is_namespace_terminating() => Ok(Next::Change),
        other => other.map(|_| Next::Change),
    }
}

/// The map as it has to be, unless it is so already.
fn plan(namespace: &str, there: Option<&ConfigMap>, pem: &str) -> Option<ConfigMap> {
    let data: BTreeMap<String, String> = [(FIELD.to_owned(), pem.to_owned())].into();
    let Some(there) = there else {
        let metadata = ObjectMeta {
            namespace: Some(namespace.into()),
            name: Some(NAME.into()),
            annotations: Some([(ABOUT.0.to_owned(), ABOUT.1.to_owned())].into()),
            ..Default::default()
        };
        return Some(ConfigMap { metadata, data: Some(data), ..Default::default() });
    };
    let about = there.metadata.annotations.as_ref().and_then(|a| a.get(ABOUT.0));
    if there.data.as_ref() == Some(&data) && about.is_some_and(|a| a == ABOUT.1) {
        return None;
    }
    let mut map = there.clone();
    map.data = Some(data);
    map.metadata.annotations.get_or_insert_default().insert(ABOUT.0.into(), ABOUT.1.into());
    Some(map)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repairs_what_was_changed_and_only_that() {
        let made = plan("ns", None, "PEM").unwrap();
        assert!(plan("ns", Some(&made), "PEM").is_none());
        let renewed = plan("ns", Some(&made), "NEW").unwrap();
        assert_eq!(renewed.data.unwrap()[FIELD], "NEW");
        let mut bare = made;
        bare.metadata.annotations = None;
        assert!(plan("ns", Some(&bare), "PEM").is_some());
    }
}
