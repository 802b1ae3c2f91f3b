//! Deletes bootstrap tokens that have run out.
//!
//! Reads secrets of type `bootstrap.kubernetes.io/token` in `kube-system`. Deletes those
//! whose `expiration` has passed; one without never does.

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::Secret;
use wasmk_api::Timestamp;

use crate::base::{Context, Informer, Key, Next, Queue, Result, TOKENS_TO_JOIN, on_change};

pub(crate) const TYPE: &str = TOKENS_TO_JOIN;

pub(crate) async fn run(cx: Context) {
    let queue = Arc::new(Queue::default());
    let secrets = cx.cache::<Secret>();
    on_change(&secrets, &queue);
    secrets.ready().await;
    cx.work("token-cleaner-controller", &queue, 1, |key| reconcile(&cx, &secrets, key)).await;
}

async fn reconcile(cx: &Context, secrets: &Informer<Secret>, key: Key) -> Result<Next> {
    let Some(secret) = secrets.get(&key).filter(|_| key.namespace == "kube-system") else {
        return Ok(Next::Change);
    };
    match left(&secret, cx.clock.now()) {
        None => Ok(Next::Change),
        Some(left) if !left.is_zero() => Ok(Next::After(left)),
        Some(_) => {
            cx.delete(&*secret, Default::default()).await?;
            Ok(Next::Change)
        }
    }
}

/// How long a token is still good; `None` for ever. An unreadable end has passed.
pub(crate) fn left(secret: &Secret, now: Timestamp) -> Option<Duration> {
    if secret.type_.as_deref() != Some(TYPE) {
        return None;
    }
    let text = secret.data.as_ref()?.get("expiration").filter(|t| !t.0.is_empty())?;
    let end = std::str::from_utf8(&text.0).ok().and_then(|t| t.trim().parse::<Timestamp>().ok());
    Some(end.map_or(Duration::ZERO, |end| end.since(now)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::ByteString;

    #[test]
    fn tokens_end_when_they_say() {
        let now = "2026-01-01T00:00:00Z".parse().unwrap();
        let secret = |kind: &str, end: Option<&str>| Secret {
            type_: Some(kind.into()),
            data: Some(
                end.map(|e| ("expiration".to_owned(), ByteString(e.as_bytes().to_vec())))
                    .into_iter()
                    .collect(),
            ),
            ..Default::default()
        };
        assert_eq!(left(&secret(TYPE, Some("2026-01-01T00:00:09Z")), now), Some(Duration::from_secs(9)));
        assert_eq!(left(&secret(TYPE, Some("2025-01-01T00:00:00Z")), now), Some(Duration::ZERO));
        assert_eq!(left(&secret(TYPE, Some("soon")), now), Some(Duration::ZERO));
        assert_eq!(left(&secret(TYPE, None), now), None);
        assert_eq!(left(&secret("Opaque", Some("2025-01-01T00:00:00Z")), now), None);
    }
}
