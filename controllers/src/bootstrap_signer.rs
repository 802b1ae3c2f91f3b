//! Signs `kube-public/cluster-info` with every bootstrap token that may sign, so that who
//! holds such a token can tell that the cluster's address and certificate are true.
//!
//! Reads that config map and secrets of type `bootstrap.kubernetes.io/token`. Writes the
//! map's `jws-kubeconfig-<token id>` entries: a signature without its content (RFC 7515,
//! appendix F), which is the map's `kubeconfig`.

use std::{collections::BTreeMap, sync::Arc};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use futures::StreamExt;
use jsonwebtoken::{Algorithm, EncodingKey};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{
    Api,
    api::PostParams,
    runtime::{WatchStreamExt, watcher},
};
use parking_lot::Mutex;
use serde_json::json;
use wasmk_api::Timestamp;

use crate::{
    base::{Context, Error, Informer, Key, Next, Queue, Result, on_change},
    token_cleaner::{TYPE, left},
};

const NAME: &str = "bootstrap-signer-controller";
const NAMESPACE: &str = "kube-public";
const MAP: &str = "cluster-info";
const CONTENT: &str = "kubeconfig";
const PREFIX: &str = "jws-kubeconfig-";

pub(crate) async fn run(cx: Context) {
    let queue = Arc::new(Queue::default());
    let secrets = cx.cache::<Secret>();
    on_change(&secrets, &queue);
    secrets.ready().await;
    let map = Mutex::new(None);
    let signing = cx.work(NAME, &queue, 1, |_| reconcile(&cx, &secrets, &map));
    tokio::select! {
        () = signing => {}
        () = follow(&cx, &map, &queue) => {}
    }
}

/// Keeps the one map in sight.
async fn follow(cx: &Context, map: &Mutex<Option<ConfigMap>>, queue: &Queue<Key>) {
    let api: Api<ConfigMap> = Api::namespaced(cx.client.clone(), NAMESPACE);
    let only = watcher::Config::default().fields(&format!("metadata.name={MAP}"));
    let mut events = std::pin::pin!(watcher(api, only).default_backoff());
    while let Some(event) = events.next().await {
        match event {
            Ok(watcher::Event::Apply(new) | watcher::Event::InitApply(new)) => *map.lock() = Some(new),
            Ok(watcher::Event::Delete(_)) => *map.lock() = None,
            Ok(_) => continue,
            Err(error) => {
                tracing::debug!(controller = NAME, error = &error as &dyn std::error::Error, "watch broke");
                continue;
            }
        }
        queue.add(Key::new(NAMESPACE, MAP));
    }
}

async fn reconcile(cx: &Context, secrets: &Informer<Secret>, map: &Mutex<Option<ConfigMap>>) -> Result<Next> {
    let Some(known) = map.lock().clone() else { return Ok(Next::Change) };
    let data = known.data.clone().unwrap_or_default();
    let now = cx.clock.now();
    let tokens: Vec<_> =
        secrets.in_namespace("kube-system").iter().filter_map(|s| signing_token(s, now)).collect();
    let wanted = plan(&data, &tokens)?;
    if wanted == data {
        return Ok(Next::Change);
    }
    let api: Api<ConfigMap> = Api::namespaced(cx.client.clone(), NAMESPACE);
    let next = ConfigMap { data: Some(wanted), ..known };
    // As a whole: the signer's role has no right to patch.
    let written = api.replace(MAP, &PostParams::default(), &next).await;
    let written = written.map_err(|e| Error::api("update", "ConfigMap", Key::new(NAMESPACE, MAP), e))?;
    *map.lock() = Some(written);
    Ok(Next::Change)
}

/// A token's id and secret, if it may sign and has not run out.
fn signing_token(secret: &Secret, now: Timestamp) -> Option<(String, String)> {
    if secret.type_.as_deref() != Some(TYPE) || left(secret, now).is_some_and(|left| left.is_zero()) {
        return None;
    }
    let field = |name: &str| Some(String::from_utf8_lossy(&secret.data.as_ref()?.get(name)?.0).into_owned());
    let (id, key) = (field("token-id")?, field("token-secret")?);
    let named = secret.metadata.name.as_deref().and_then(|n| n.strip_prefix("bootstrap-token-"));
    let signs = field("usage-bootstrap-signing").as_deref() == Some("true");
    (signs && named == Some(&*id) && !key.is_empty()).then_some((id, key))
}

/// The map's data with one signature per token, and none of tokens that are gone.
fn plan(data: &BTreeMap<String, String>, tokens: &[(String, String)]) -> Result<BTreeMap<String, String>> {
    let mut wanted = data.clone();
    wanted.retain(|key, _| !key.starts_with(PREFIX));
    let Some(content) = data.get(CONTENT) else { return Ok(wanted) };
    for (id, key) in tokens {
        wanted.insert(format!("{PREFIX}{id}"), signature(content, id, key)?);
    }
    Ok(wanted)
}

/// Header and signature with nothing between.
fn signature(content: &str, id: &str, key: &str) -> Result<String> {
    let header = URL_SAFE_NO_PAD.encode(json!({"alg": "HS256", "kid": id}).to_string());
    let signed = format!("{header}.{}", URL_SAFE_NO_PAD.encode(content));
    let key = EncodingKey::from_secret(key.as_bytes());
    let mac = jsonwebtoken::crypto::sign(signed.as_bytes(), &key, Algorithm::HS256)
        .map_err(|e| Error::Invalid(format!("cannot sign {MAP} with token {id}: {e}")))?;
    Ok(format!("{header}..{mac}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::ByteString;

    fn secret(fields: &[(&str, &str)]) -> Secret {
        let data = fields.iter().map(|(k, v)| ((*k).to_owned(), ByteString(v.as_bytes().to_vec())));
        let mut secret =
            Secret { type_: Some(TYPE.into()), data: Some(data.collect()), ..Default::default() };
        secret.metadata.name = Some("bootstrap-token-abcdef".into());
        secret
    }

    #[test]
    fn only_tokens_that_may_sign_do() {
        let now = "2026-01-01T00:00:00Z".parse().unwrap();
        let good = [
            ("token-id", "abcdef"),
            ("token-secret", "0123456789abcdef"),
            ("usage-bootstrap-signing", "true"),
        ];
        let check = |change: (&'static str, &'static str), expect: bool| {
            let fields: Vec<_> = good.iter().copied().filter(|f| f.0 != change.0).chain([change]).collect();
            assert_eq!(signing_token(&secret(&fields), now).is_some(), expect, "{change:?}");
        };
        check(("auth-extra-groups", "system:bootstrappers:a"), true);
        check(("usage-bootstrap-signing", "false"), false);
        check(("token-id", "other1"), false);
        check(("token-secret", ""), false);
        check(("expiration", "2025-01-01T00:00:00Z"), false);
        check(("expiration", "2027-01-01T00:00:00Z"), true);
    }

    #[test]
    fn a_signature_can_be_checked_with_the_tokens_secret() {
        let data = BTreeMap::from([
            (CONTENT.to_owned(), "clusters: []".to_owned()),
            ("jws-kubeconfig-gone00".to_owned(), "x..y".to_owned()),
        ]);
        let wanted = plan(&data, &[("abcdef".into(), "0123456789abcdef".into())]).unwrap();
        assert_eq!(wanted.keys().collect::<Vec<_>>(), ["jws-kubeconfig-abcdef", CONTENT]);
        let (header, mac) = wanted["jws-kubeconfig-abcdef"].split_once("..").unwrap();
        let text: serde_json::Value =
            serde_json::from_slice(&URL_SAFE_NO_PAD.decode(header).unwrap()).unwrap();
        assert_eq!(text, json!({"alg": "HS256", "kid": "abcdef"}));
        let signed = format!("{header}.{}", URL_SAFE_NO_PAD.encode("clusters: []"));
        let verify = |secret: &str| {
            let key = jsonwebtoken::DecodingKey::from_secret(secret.as_bytes());
            jsonwebtoken::crypto::verify(mac, signed.as_bytes(), &key, Algorithm::HS256).unwrap()
        };
        assert!(verify("0123456789abcdef") && !verify("another"));
        assert_eq!(plan(&wanted, &[("abcdef".into(), "0123456789abcdef".into())]).unwrap(), wanted);
    }
}
