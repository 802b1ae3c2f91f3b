//! Authentication: which user a request's credentials stand for.
//!
//! In order: an identity that this process put into the request itself, a client certificate, a bearer token
//! (static, service account, bootstrap). Credentials that are there but wrong are refused; none at all is
//! `system:anonymous`. Impersonation comes after, and needs permission.

use std::{collections::HashMap, sync::Arc};

use http::{HeaderMap, header};
use parking_lot::RwLock;
use rustls_pki_types::CertificateDer;
use sha2::{Digest, Sha256};
use wasmk_api::{Status, Timestamp};
use x509_parser::{certificate::X509Certificate, pem::parse_x509_pem, prelude::FromDer};

use super::{
    tokens::{Bound, Claims, Signer},
    user::User,
};
use crate::cache::{Cache, Caches, Entry};

/// The identity of a caller inside this process, put into the request's extensions.
#[derive(Clone, Debug)]
pub(crate) struct Identity(pub(crate) Arc<User>);

/// The certificate a TLS client proved to have, put into the request's extensions by the listener.
#[derive(Clone, Debug)]
pub(crate) struct PeerCertificate(pub(crate) CertificateDer<'static>);

/// Most verified tokens that are remembered.
const MAX_REMEMBERED: usize = 4096;
/// The group of nodes that are joining.
const BOOTSTRAPPERS: &str = "system:bootstrappers";

/// Users of certificates by hash, each with the second it ends in.
type Certificates = HashMap<[u8; 32], (i64, Arc<User>)>;

/// Finds users by their credentials.
pub(crate) struct Authenticator {
    signer: Arc<Signer>,
    ca: Option<Vec<u8>>,
    static_tokens: HashMap<[u8; 32], Arc<User>>,
    accounts: Arc<Cache>,
    secrets: Arc<Cache>,
    pods: Arc<Cache>,
    nodes: Arc<Cache>,
    verified: RwLock<HashMap<[u8; 32], Arc<Claims>>>,
    certificates: RwLock<Certificates>,
    clock: fn() -> Timestamp,
}

impl Authenticator {
    /// With those caches and keys. `ca` is the PEM of the authority of client certificates.
    pub(crate) fn new(
        caches: &Caches,
        signer: Arc<Signer>,
        ca: &str,
        static_tokens: &[(String, User)],
        clock: fn() -> Timestamp,
    ) -> Self {
        let static_tokens =
            static_tokens.iter().map(|(t, u)| (digest(t.as_bytes()), Arc::new(u.clone()))).collect();
        Self {
            signer,
            ca: parse_x509_pem(ca.as_bytes()).ok().map(|(_, pem)| pem.contents),
            static_tokens,
            accounts: caches.of("core/serviceaccounts"),
            secrets: caches.of("core/secrets"),
            pods: caches.of("core/pods"),
            nodes: caches.of("core/nodes"),
            verified: RwLock::default(),
            certificates: RwLock::default(),
            clock,
        }
    }

    /// The user of a request.
    ///
    /// # Errors
    /// 401 for credentials that are wrong.
    pub(crate) fn authenticate(
        &self,
        headers: &HeaderMap,
        extensions: &http::Extensions,
    ) -> Result<Arc<User>, Status> {
        if let Some(Identity(user)) = extensions.get() {
            return Ok(user.clone());
        }
        if let Some(PeerCertificate(certificate)) = extensions.get() {
            return self.certificate(certificate).ok_or_else(Status::unauthorized);
        }
        match bearer(headers) {
            Some(token) => self
                .token(token, &[self.signer.issuer()])
                .map(|(user, _)| user)
                .ok_or_else(Status::unauthorized),
            None => Ok(Arc::new(User::anonymous())),
        }
    }

    /// The user of a token for one of those audiences, and which of them it is for.
    pub(crate) fn token(&self, token: &str, audiences: &[&str]) -> Option<(Arc<User>, Vec<String>)> {
        let hash = digest(token.as_bytes());
        let all = || audiences.iter().map(|a| (*a).to_owned()).collect();
        if let Some(user) = self.static_tokens.get(&hash) {
            return Some((user.clone(), all()));
        }
        if token.len() == 23 && token.as_bytes()[6] == b'.' {
            return self.bootstrap(token).map(|user| (user, all()));
        }
        let claims = self.claims(token, hash)?;
        let shared: Vec<String> =
            claims.aud.iter().filter(|a| audiences.contains(&a.as_str())).cloned().collect();
        if shared.is_empty() {
            return None;
        }
        self.account(&claims).map(|user| (Arc::new(user), shared))
    }

    /// The audiences of a token of a service account, if it is a good one.
    pub(crate) fn audiences(&self, token: &str) -> Option<Vec<String>> {
        self.claims(token, digest(token.as_bytes())).map(|claims| claims.aud.clone())
    }

    fn claims(&self, token: &str, hash: [u8; 32]) -> Option<Arc<Claims>> {
        let now = (self.clock)().0.as_second();
        if let Some(claims) = self.verified.read().get(&hash) {
            return (claims.exp > now).then(|| claims.clone());
        }
        let claims = Arc::new(self.signer.verify(token)?);
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

    /// The user of claims whose bound objects still exist.
    fn account(&self, claims: &Claims) -> Option<User> {
        let private = &claims.private;
        let account = &private.serviceaccount;
        let key = |name: &str| format!("{}/{name}", private.namespace);
        let alive = |cache: &Cache, key: &str, bound: &Bound| {
            cache.get(key).is_some_and(|e| uid_of(&e).as_deref() == Some(&bound.uid))
        };
        if !alive(&self.accounts, &key(&account.name), account) {
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
            if must_live && !alive(cache, key, bound) {
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
            && !alive(&self.secrets, &key(&secret.name), secret)
        {
            return None;
        }
        Some(user)
    }

    /// The user of a bootstrap token `id.secret`, which a Secret in `kube-system` vouches for.
    fn bootstrap(&self, token: &str) -> Option<Arc<User>> {
        let (id, secret) = token.split_once('.')?;
        let entry = self.secrets.get(&format!("kube-system/bootstrap-token-{id}"))?;
        let object = entry.object();
        let field = |name: &str| -> Option<String> {
            use base64::{Engine, engine::general_purpose::STANDARD};
            let text = object.at(&["data", name])?.as_str()?;
            String::from_utf8(STANDARD.decode(text).ok()?).ok()
        };
        let right = object.at(&["type"]).and_then(|t| t.as_str()) == Some("bootstrap.kubernetes.io/token")
            && field("token-id").as_deref() == Some(id)
            && field("usage-bootstrap-authentication").as_deref() == Some("true")
            && same(field("token-secret")?.as_bytes(), secret.as_bytes());
        let expired = match field("expiration") {
            Some(text) => text.parse::<Timestamp>().ok()? <= (self.clock)(),
            None => false,
        };
        if !right || expired || object.is_deleting() {
            return None;
        }
        let mut groups = vec![BOOTSTRAPPERS.to_owned()];
        let extra = field("auth-extra-groups").unwrap_or_default();
        groups
            .extend(extra.split(',').map(str::trim).filter(|g| g.starts_with(BOOTSTRAPPERS)).map(Into::into));
        Some(Arc::new(User::new(format!("system:bootstrap:{id}"), groups)))
    }

    fn certificate(&self, der: &CertificateDer<'_>) -> Option<Arc<User>> {
        let hash = digest(der);
        let now = (self.clock)().0.as_second();
        if let Some((until, user)) = self.certificates.read().get(&hash) {
            return (*until > now).then(|| user.clone());
        }
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let (_, ca) = X509Certificate::from_der(self.ca.as_deref()?).ok()?;
        certificate.verify_signature(Some(ca.public_key())).ok()?;
        let validity = certificate.validity();
        let until = validity.not_after.timestamp();
        let client_use =
            certificate.extended_key_usage().ok()?.is_none_or(|u| u.value.client_auth || u.value.any);
        if validity.not_before.timestamp() > now || until <= now || !client_use {
            return None;
        }
        let subject = certificate.subject();
        let name = subject.iter_common_name().next()?.as_str().ok()?;
        let groups = subject.iter_organization().filter_map(|o| o.as_str().ok());
        let mut user = User::new(name, groups);
        let id = format!("X509SHA256={}", hex::encode(hash));
        user.extra.insert("authentication.kubernetes.io/credential-id".into(), vec![id]);
        let user = Arc::new(user);
        let mut known = self.certificates.write();
        if known.len() >= MAX_REMEMBERED {
            known.clear();
        }
        known.insert(hash, (until, user.clone()));
        Some(user)
    }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

fn digest(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// Compares secrets in a time that does not depend on where they differ.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |diff, (x, y)| diff | (x ^ y)) == 0
}

/// The uid of an object, unless it is being deleted for good.
fn uid_of(entry: &Entry) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Head {
        metadata: Meta,
    }
    #[derive(serde::Deserialize)]
    struct Meta {
        uid: String,
    }
    serde_json::from_slice::<Head>(&entry.body).ok().map(|h| h.metadata.uid)
}

/// Whom a request wants to act as, from its `Impersonate-` headers; `None` when it has none.
///
/// # Errors
/// When groups or extras are impersonated without a user.
pub(crate) fn impersonated(headers: &HeaderMap) -> Result<Option<User>, Status> {
    let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or("").to_owned();
    let mut user = User { name: text("impersonate-user"), uid: text("impersonate-uid"), ..User::default() };
    user.groups =
        headers.get_all("impersonate-group").iter().filter_map(|v| v.to_str().ok().map(Into::into)).collect();
    for (name, value) in headers {
        if let (Some(key), Ok(value)) = (name.as_str().strip_prefix("impersonate-extra-"), value.to_str()) {
            let key = crate::http::request::decode(key);
            user.extra.entry(key).or_default().push(value.into());
        }
    }
    if user.name.is_empty() {
        let bare = user.groups.is_empty() && user.extra.is_empty() && user.uid.is_empty();
        return if bare { Ok(None) } else { Err(Status::bad_request(without_user(&user))) };
    }
    Ok(Some(user))
}

/// In the words of Kubernetes, which prints the user as Go does.
fn without_user(user: &User) -> String {
    let list = |items: &[String]| match items {
        [] => "[]string(nil)".to_owned(),
        items => {
            format!("[]string{{{}}}", items.iter().map(|i| format!("{i:?}")).collect::<Vec<_>>().join(", "))
        }
    };
    let extra: Vec<String> = user.extra.iter().map(|(k, v)| format!("{k:?}:{}", list(v))).collect();
    let extra = if extra.is_empty() { "(nil)".into() } else { format!("{{{}}}", extra.join(", ")) };
    format!(
        "requested &user.DefaultInfo{{Name:\"\", UID:{:?}, Groups:{}, Extra:map[string][]string{extra}}} without impersonating a user name",
        user.uid,
        list(&user.groups)
    )
}
