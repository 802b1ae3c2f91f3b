//! Fills secrets of type `kubernetes.io/service-account-token`, and removes them with their
//! account.
//!
//! Reads such secrets and service accounts. Asks the API for a token bound to the secret and
//! writes it beside the certificate and the namespace.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::{
    ByteString,
    api::{
        authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec},
        core::v1::{Secret, ServiceAccount},
    },
};

use crate::base::{Context, Error, Informer, Key, Next, Queue, Result, is_deleting, on_change, uid};

const TYPE: &str = "kubernetes.io/service-account-token";
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
    let has = |field: &str| secret.data.as_ref().and_then(|d| d.get(field)).is_some_and(|v| !v.0.is_empty());
    if has("token") && has("namespace") && (has("ca.crt") || cx.settings.ca_pem.is_empty()) && noted.is_some()
    {
        return Ok(Next::Change);
    }
    let token = token(cx, &secret, &account_key).await?;
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
