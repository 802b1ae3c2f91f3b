//! Tokens the cluster itself gives out: to service accounts, in Secrets, and to joining nodes.

use std::{collections::HashMap, sync::Arc};

use parking_lot::RwLock;
use wasmk_api::{Object, Timestamp};

use super::{
    tokens::{Bound, Claims, Signer},
    user::User,
};
use crate::cache::{Cache, Caches};

/// Most verified tokens that are remembered.
const MAX_REMEMBERED: usize = 4096;
/// The group of nodes that are joining.
const BOOTSTRAPPERS: &str = "system:bootstrappers";

/// Finds service accounts and joining nodes by their tokens.
pub(crate) struct Accounts {
    signer: Arc<Signer>,
    accounts: Arc<Cache>,
    secrets: Arc<Cache>,
    pods: Arc<Cache>,
    nodes: Arc<Cache>,
    verified: RwLock<HashMap<[u8; 32], Arc<Claims>>>,
}

impl Accounts {
    pub(crate) fn new(caches: &Caches, signer: Arc<Signer>) -> Self {
        Self {
            signer,
            accounts: caches.of("core/serviceaccounts"),
            secrets: caches.of("core/secrets"),
            pods: caches.of("core/pods"),
            nodes: caches.of("core/nodes"),
            verified: RwLock::default(),
        }
    }

    /// The claims of a token with that hash, if it is good at that second.
    pub(crate) fn claims(&self, token: &str, hash: [u8; 32], now: i64) -> Option<Arc<Claims>> {
        if let Some(claims) = self.verified.read().get(&hash) {
            return (claims.exp > now).then(|| claims.clone());
        }
        let claims = Arc::new(self.signer.verify(token, now)?);
        let mut verified = self.verified.write();
        if verified.len() >= MAX_REMEMBERED {
            verified.retain(|_, c| c.exp > now);
            if verified.len() >= MAX_REMEMBERED {
                verified.clear();
            }
        }
        verified.insert(hash, claims.clone());
        Some(claims)
    }

    /// The service account of a token for one of those audiences, and which of them it is for.
    pub(crate) fn user(
        &self,
        token: &str,
        hash: [u8; 32],
        audiences: &[&str],
        now: i64,
    ) -> Option<(User, Vec<String>)> {
        let claims = self.claims(token, hash, now)?;
        let shared: Vec<String> =
            claims.aud.iter().filter(|a| audiences.contains(&a.as_str())).cloned().collect();
        if shared.is_empty() {
            return None;
        }
        Some((self.account(&claims)?, shared))
    }

    /// The user of claims whose bound objects still exist.
    fn account(&self, claims: &Claims) -> Option<User> {
        let private = &claims.private;
        let account = &private.serviceaccount;
        let key = |name: &str| format!("{}/{name}", private.namespace);
        if !alive(&self.accounts, &key(&account.name), &account.uid) {
            return None;
        }
        let mut user = User::service_account(&private.namespace, &account.name);
        user.uid.clone_from(&account.uid);
        if !claims.jti.is_empty() {
            user.extra.insert(
                "authentication.kubernetes.io/credential-id".into(),
                vec![format!("JTI={}", claims.jti)],
            );
        }
        let mut bind = |cache: &Cache, key: &str, bound: &Bound, word: &str, must_live: bool| {
            if must_live && !alive(cache, key, &bound.uid) {
                return false;
            }
            user.extra.insert(format!("authentication.kubernetes.io/{word}-name"), vec![bound.name.clone()]);
            user.extra.insert(format!("authentication.kubernetes.io/{word}-uid"), vec![bound.uid.clone()]);
            true
        };
        if let Some(pod) = &private.pod
            && !bind(&self.pods, &key(&pod.name), pod, "pod", true)
        {
            return None;
        }
        if let Some(node) = &private.node
            && !bind(&self.nodes, &node.name, node, "node", private.pod.is_none())
        {
            return None;
        }
        if let Some(secret) = &private.secret
            && !alive(&self.secrets, &key(&secret.name), &secret.uid)
        {
            return None;
        }
        Some(user)
    }

    /// The service account of the token in a Secret, while that Secret is there and holds it.
    pub(crate) fn legacy(&self, token: &str) -> Option<User> {
        let claims = self.signer.verify_legacy(token)?;
        let secret = self.secrets.get(&format!("{}/{}", claims.namespace, claims.secret))?.object();
        let held = secret_field(&secret, "token")?;
        if secret.is_deleting() || !same(held.as_bytes(), token.as_bytes()) {
            return None;
        }
        if !alive(&self.accounts, &format!("{}/{}", claims.namespace, claims.account), &claims.uid) {
            return None;
        }
        let mut user = User::service_account(&claims.namespace, &claims.account);
        user.uid = claims.uid;
        Some(user)
    }

    /// The user of a bootstrap token `id.secret`, which a Secret in `kube-system` vouches for.
    pub(crate) fn bootstrap(&self, token: &str, now: Timestamp) -> Option<User> {
        let (id, secret) =
            token.split_once('.').filter(|(id, secret)| id.len() == 6 && secret.len() == 16)?;
        let object = self.secrets.get(&format!("kube-system/bootstrap-token-{id}"))?.object();
        let field = |name: &str| secret_field(&object, name);
        let right = object.at(&["type"]).and_then(|t| t.as_str()) == Some("bootstrap.kubernetes.io/token")
            && field("token-id").as_deref() == Some(id)
            && field("usage-bootstrap-authentication").as_deref() == Some("true")
            && same(field("token-secret")?.as_bytes(), secret.as_bytes());
        let expired = match field("expiration") {
            Some(text) => text.parse::<Timestamp>().ok()? <= now,
            None => false,
        };
        if !right || expired || object.is_deleting() {
            return None;
        }
        let mut groups = vec![BOOTSTRAPPERS.to_owned()];
        let extra = field("auth-extra-groups").unwrap_or_default();
        groups
            .extend(extra.split(',').map(str::trim).filter(|g| g.starts_with(BOOTSTRAPPERS)).map(Into::into));
        Some(User::new(format!("system:bootstrap:{id}"), groups))
    }
}

/// Compares secrets in a time that does not depend on where they differ.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && std::hint::black_box(a.iter().zip(b).fold(0, |diff, (x, y)| diff | (x ^ y))) == 0
}

fn secret_field(secret: &Object, name: &str) -> Option<String> {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let text = secret.at(&["data", name])?.as_str()?;
    String::from_utf8(STANDARD.decode(text).ok()?).ok()
}

/// Whether an object is there and is the one that was meant.
fn alive(cache: &Cache, key: &str, uid: &str) -> bool {
    cache.get(key).is_some_and(|entry| !uid.is_empty() && entry.uid() == uid)
}
