//! Authentication: which user a request's credentials stand for.
//!
//! In order: an identity that this process put into the request itself, a proxy's headers, a client certificate, a
//! bearer token (static, service account, bootstrap, OpenID Connect, webhook). Credentials that are there but
//! wrong are refused; none at all is `system:anonymous`. Impersonation comes after, and needs permission.

use std::{collections::HashMap, sync::Arc};

use http::{HeaderMap, header};
use rustls_pki_types::CertificateDer;
use sha2::{Digest, Sha256};
use wasmk_api::{Status, Timestamp};

use super::{
    accounts::Accounts,
    certificates::Authorities,
    front_proxy::FrontProxies,
    oidc::Issuer,
    remote::RemoteError,
    settings::{Authentication, RequestHeader},
    token_review::TokenReviewer,
    tokens::Signer,
    user::User,
};
use crate::cache::Caches;

/// The identity of a caller inside this process, put into the request's extensions.
#[derive(Clone, Debug)]
pub(crate) struct Identity(pub(crate) Arc<User>);

/// The certificate chain whose first key a TLS client proved to have, put into the request's extensions by the
/// listener. Whether anybody vouches for it is for authentication to find out.
#[derive(Clone, Debug)]
pub(crate) struct PeerCertificate(pub(crate) Arc<Vec<CertificateDer<'static>>>);

/// What a WebSocket client that cannot set headers puts before its token, among the protocols it offers.
const TOKEN_PROTOCOL: &str = "base64url.bearer.authorization.k8s.io.";

/// Finds users by their credentials.
pub(crate) struct Authenticator {
    audiences: Vec<String>,
    clients: Authorities,
    proxies: Option<FrontProxies>,
    static_tokens: HashMap<[u8; 32], Arc<User>>,
    accounts: Accounts,
    oidc: Option<Issuer>,
    webhook: Option<TokenReviewer>,
    anonymous: bool,
    clock: fn() -> Timestamp,
}

/// What an [`Authenticator`] is made with.
pub(crate) struct Sources<'a> {
    /// The keys of service accounts' tokens.
    pub(crate) signer: Arc<Signer>,
    /// The authorities (PEM) of client certificates.
    pub(crate) client_ca: &'a str,
    /// Tokens with their users.
    pub(crate) static_tokens: &'a [(String, User)],
    /// Proxies that name users.
    pub(crate) request_header: Option<RequestHeader>,
    /// Everything else.
    pub(crate) settings: Authentication,
    /// The present.
    pub(crate) clock: fn() -> Timestamp,
}

impl Authenticator {
    /// With those caches and keys.
    ///
    /// # Errors
    /// When a remote authenticator's settings cannot be used.
    pub(crate) async fn new(caches: &Caches, trust: Sources<'_>) -> Result<Self, RemoteError> {
        let Sources { signer, client_ca, static_tokens, request_header, settings, clock } = trust;
        let static_tokens =
            static_tokens.iter().map(|(t, u)| (digest(t.as_bytes()), Arc::new(u.clone()))).collect();
        let mut audiences = settings.accounts.audiences.clone();
        if audiences.is_empty() {
            audiences.push(signer.issuer().to_owned());
        }
        let webhook = match settings.webhook {
            Some(webhook) => Some(TokenReviewer::new(webhook).await?),
            None => None,
        };
        Ok(Self {
            accounts: Accounts::new(caches, signer),
            audiences,
            clients: Authorities::new(client_ca),
            proxies: request_header.map(FrontProxies::new),
            static_tokens,
            oidc: settings.oidc.map(Issuer::new).transpose()?,
            webhook,
            anonymous: settings.anonymous,
            clock,
        })
    }

    /// From now on client certificates of these authorities (PEM), and proxies of those.
    pub(crate) fn trust(&self, clients: &str, proxies: Option<&str>) {
        self.clients.replace(clients);
        if let (Some(known), Some(bundle)) = (&self.proxies, proxies) {
            known.replace(bundle);
        }
    }

    /// The audiences of the API.
    pub(crate) fn audiences(&self) -> Vec<&str> {
        self.audiences.iter().map(String::as_str).collect()
    }

    /// The user of a request.
    ///
    /// # Errors
    /// 401 for credentials that are wrong, and for none where anonymous requests are not welcome.
    pub(crate) async fn authenticate(
        &self,
        headers: &HeaderMap,
        extensions: &http::Extensions,
    ) -> Result<Arc<User>, Status> {
        if let Some(Identity(user)) = extensions.get() {
            return Ok(user.clone());
        }
        let mut shown = false;
        if let Some(PeerCertificate(chain)) = extensions.get() {
            if let Some(user) = self.of_certificate(chain, headers) {
                return Ok(Arc::new(user));
            }
            shown = true;
        }
        if let Some(token) = bearer(headers) {
            if let Some((user, _)) = self.token(&token, &self.audiences()).await {
                return Ok(user);
            }
            shown = true;
        }
        if shown || !self.anonymous {
            return Err(Status::unauthorized());
        }
        Ok(Arc::new(User::anonymous()))
    }

    /// The user a certificate stands for, or whom the proxy with that certificate names.
    pub(crate) fn of_certificate(&self, chain: &[CertificateDer<'_>], headers: &HeaderMap) -> Option<User> {
        let now = (self.clock)().0.as_second();
        if let Some(user) = self.proxies.as_ref().and_then(|p| p.user(chain, headers, now)) {
            return Some(user);
        }
        let subject = self.clients.verify(chain, now)?;
        let mut user = User::new(subject.name, subject.groups);
        let id = format!("X509SHA256={}", subject.fingerprint);
        user.extra.insert("authentication.kubernetes.io/credential-id".into(), vec![id]);
        Some(user)
    }

    /// The user of a token for one of those audiences, and which of them it is for.
    pub(crate) async fn token(&self, token: &str, audiences: &[&str]) -> Option<(Arc<User>, Vec<String>)> {
        let hash = digest(token.as_bytes());
        let own = || -> Option<Vec<String>> {
            let shared: Vec<String> = audiences
                .iter()
                .filter(|a| self.audiences.iter().any(|o| o == *a))
                .map(|a| (*a).to_owned())
                .collect();
            (!shared.is_empty()).then_some(shared)
        };
        if let Some(user) = self.static_tokens.get(&hash) {
            return Some((user.clone(), own()?));
        }
        let now = (self.clock)();
        if let Some((user, shared)) = self.accounts.user(token, hash, audiences, now.0.as_second()) {
            return Some((Arc::new(user), shared));
        }
        if let Some(user) = self.accounts.legacy(token) {
            return Some((Arc::new(user), own()?));
        }
        if let Some(user) = self.accounts.bootstrap(token, now) {
            return Some((Arc::new(user), own()?));
        }
        if let Some(issuer) = &self.oidc
            && let Some(user) = issuer.user(token, now.0.as_second()).await
        {
            return Some((Arc::new(user), own()?));
        }
        let (user, shared) = self.webhook.as_ref()?.user(token, audiences).await?;
        Some((Arc::new(user), shared))
    }

    /// The audiences of a token of a service account, if it is a good one.
    pub(crate) fn audiences_of(&self, token: &str) -> Option<Vec<String>> {
        let now = (self.clock)().0.as_second();
        self.accounts.claims(token, digest(token.as_bytes()), now).map(|claims| claims.aud.clone())
    }
}

/// The bearer token, from the header or from where browsers put it.
fn bearer(headers: &HeaderMap) -> Option<String> {
    let text = |name: &header::HeaderName| headers.get(name).and_then(|v| v.to_str().ok());
    if let Some((scheme, token)) = text(&header::AUTHORIZATION).and_then(|v| v.split_once(' '))
        && scheme.eq_ignore_ascii_case("bearer")
        && !token.trim().is_empty()
    {
        return Some(token.trim().to_owned());
    }
    let offered = text(&header::SEC_WEBSOCKET_PROTOCOL)?;
    let encoded = offered.split(',').find_map(|p| p.trim().strip_prefix(TOKEN_PROTOCOL))?;
    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
    String::from_utf8(URL_SAFE_NO_PAD.decode(encoded).ok()?).ok().filter(|token| !token.is_empty())
}

fn digest(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}
