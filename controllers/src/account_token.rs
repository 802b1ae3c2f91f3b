//! Fills secrets of type `kubernetes.io/service-account-token`, and removes them with their
//! account.
//!
//! Reads such secrets and service accounts. Writes a token beside the authorities and the
//! namespace: one without an end, signed here, as long as the key is at hand; else one that
//! the API gives, bound to the secret.

use std::{collections::BTreeMap, sync::Arc};

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use k8s_openapi::{
    ByteString,
    api::{
        authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec},
        core::v1::{Secret, ServiceAccount},
    },
};

use serde_json::json;

use crate::base::{
    Context, Error, Informer, Key, Next, Queue, Result, TOKENS_OF_ACCOUNTS, is_deleting, on_change, uid,
};

const TYPE: &str = TOKENS_OF_ACCOUNTS;
const ACCOUNT: &str = "kubernetes.io/service-account.name";
const ACCOUNT_UID: &str = "kubernetes.io/service-account.uid";
/// Seconds a token is asked for; the API may give less.
const LIFETIME: i64 = 10 * 365 * 24 * 3600;

pub(crate) async fn run(cx: Context) {
    let queue = Arc::new(Queue::default());
    let (secrets, accounts) = (cx.cache::<Secret>(), cx.cache::<ServiceAccount>());
    on_change(&secrets, &queue);
    let (known, sink) = (secrets.clone(), queue.clone());
    accounts.subscribe(move |old, new| {
        let Some(account) = new.or(old).filter(|_| old.is_none() || new.is_none()) else { return };
        let all = known.in_namespace(account.metadata.namespace.as_deref().unwrap_or(""));
        let of = |s: &&Arc<Secret>| account_of(s) == account.metadata.name.as_deref();
        all.iter().filter(of).for_each(|s| sink.add(Key::of(&s.metadata)));
    });
    secrets.ready().await;
    accounts.ready().await;
    cx.work("serviceaccount-token-controller", &queue, 1, |key| reconcile(&cx, &secrets, &accounts, key))
        .await;
}

fn account_of(secret: &Secret) -> Option<&str> {
    if secret.type_.as_deref() != Some(TYPE) {
        return None;
    }
    secret.metadata.annotations.as_ref()?.get(ACCOUNT).map(String::as_str)
}

async fn reconcile(
    cx: &Context,
    secrets: &Informer<Secret>,
    accounts: &Informer<ServiceAccount>,
    key: Key,
) -> Result<Next> {
    let Some(secret) = secrets.get(&key).filter(|s| !is_deleting(&**s)) else { return Ok(Next::Change) };
    let Some(name) = account_of(&secret) else { return Ok(Next::Change) };
    let account_key = Key::new(key.namespace.clone(), name);
    let account = match accounts.get(&account_key) {
        Some(account) => Some(account),
        // The cache may be behind: ask before a secret is removed.
        None => cx.fetch::<ServiceAccount>(&account_key).await?,
    };
    let noted = secret.metadata.annotations.as_ref().and_then(|a| a.get(ACCOUNT_UID));
    let Some(account) = account.filter(|a| noted.is_none_or(|n| n == uid(&**a))) else {
        cx.delete(&*secret, Default::default()).await?;
        return Ok(Next::Change);
    };
    let held = |field: &str| secret.data.as_ref().and_then(|d| d.get(field)).filter(|v| !v.0.is_empty());
    let authorities = cx.settings.ca_pem.as_bytes();
    let trusted = authorities.is_empty() || held("ca.crt").is_some_and(|pem| pem.0 == authorities);
    if held("token").is_some() && held("namespace").is_some() && trusted && noted.is_some() {
        return Ok(Next::Change);
    }
    let token = match held("token") {
        Some(token) => String::from_utf8_lossy(&token.0).into_owned(),
        None if cx.settings.token_key_pem.is_empty() => token(cx, &secret, &account_key).await?,
        None => sign(&cx.settings.token_key_pem, &secret, &account_key, uid(&*account))?,
    };
    let mut next = (*secret).clone();
    next.metadata.annotations.get_or_insert_default().insert(ACCOUNT_UID.into(), uid(&*account).into());
    let data: &mut BTreeMap<String, ByteString> = next.data.get_or_insert_default();
    data.insert("token".into(), ByteString(token.into_bytes()));
    data.insert("namespace".into(), ByteString(key.namespace.into_bytes()));
    if !cx.settings.ca_pem.is_empty() {
        data.insert("ca.crt".into(), ByteString(cx.settings.ca_pem.clone().into_bytes()));
    }
    cx.replace(&next).await?;
    Ok(Next::Change)
}

/// A token without an end, which is good as long as the secret holds it.
fn sign(key: &str, secret: &Secret, account: &Key, account_uid: &str) -> Result<String> {
    let unusable =
        |e: jsonwebtoken::errors::Error| Error::Invalid(format!("the key of tokens is unusable: {e}"));
    let (algorithm, key) = match EncodingKey::from_ec_pem(key.as_bytes()) {
        Ok(key) => (Algorithm::ES256, key),
        Err(_) => (Algorithm::RS256, EncodingKey::from_rsa_pem(key.as_bytes()).map_err(unusable)?),
    };
    let claims = json!({
        "iss": "kubernetes/serviceaccount",
        "kubernetes.io/serviceaccount/namespace": account.namespace,
        "kubernetes.io/serviceaccount/secret.name": secret.metadata.name,
        "kubernetes.io/serviceaccount/service-account.name": account.name,
        "kubernetes.io/serviceaccount/service-account.uid": account_uid,
        "sub": format!("system:serviceaccount:{}:{}", account.namespace, account.name),
    });
    let mut header = Header::new(algorithm);
    header.typ = None;
    jsonwebtoken::encode(&header, &claims, &key).map_err(unusable)
}

/// A token of the account that ends with the secret.
async fn token(cx: &Context, secret: &Secret, account: &Key) -> Result<String> {
    let request = TokenRequest {
        spec: Some(TokenRequestSpec {
            audiences: None,
            expiration_seconds: Some(LIFETIME),
            bound_object_ref: Some(BoundObjectReference {
                api_version: Some("v1".into()),
                kind: Some("Secret".into()),
                name: secret.metadata.name.clone(),
                uid: secret.metadata.uid.clone(),
            }),
        }),
        ..Default::default()
    };
    let answer: TokenRequest = cx.post_sub::<ServiceAccount, _, _>(account, "token", &request).await?;
    let token = answer.status.and_then(|s| s.token).filter(|t| !t.is_empty());
    token.ok_or_else(|| Error::Invalid(format!("the API gave no token for service account {account}")))
}
