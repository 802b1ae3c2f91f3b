//! How an API server believes, decides and remembers: the settings of authentication and authorization.

use std::time::Duration;

use kube::config::Kubeconfig;

use super::abac;

/// Who is believed to be whom, beyond client certificates and the server's own tokens.
#[derive(Clone, Debug)]
pub struct Authentication {
    /// Whether requests without credentials are `system:anonymous`; otherwise they are refused with 401.
    pub anonymous: bool,
    /// A trusted issuer of OpenID Connect tokens.
    pub oidc: Option<Oidc>,
    /// A service that is asked about bearer tokens nobody else knows.
    pub webhook: Option<Webhook>,
    /// Whether service accounts' tokens are what they are asked to be.
    pub accounts: Accounts,
}

impl Default for Authentication {
    fn default() -> Self {
        Self { anonymous: true, oidc: None, webhook: None, accounts: Accounts::default() }
    }
}

/// What tokens of service accounts are like.
#[derive(Clone, Debug, Default)]
pub struct Accounts {
    /// Issuers whose tokens are accepted besides the one that new tokens name.
    pub more_issuers: Vec<String>,
    /// Keys (PEM, public or private) that verify tokens besides the signing key.
    pub more_keys: Vec<String>,
    /// Audiences of the API; empty for its issuer alone.
    pub audiences: Vec<String>,
    /// The longest life a token may be asked for.
    pub max_life: Option<Duration>,
    /// Whether tokens of clients that do not renew them hold only as long as they say.
    pub never_extend: bool,
}

/// A trusted issuer of OpenID Connect tokens.
#[derive(Clone, Debug)]
pub struct Oidc {
    /// Its URL, exactly as tokens name it.
    pub issuer: String,
    /// The audience tokens must be for.
    pub client_id: String,
    /// The claim that holds the user's name.
    pub username_claim: String,
    /// What is put before names. `None`: the issuer and `#` before claims other than `email`.
    pub username_prefix: Option<String>,
    /// The claim that holds groups; empty for none.
    pub groups_claim: String,
    /// What is put before groups.
    pub groups_prefix: String,
    /// The authority (PEM) of the issuer's server; `None` for those the system trusts.
    pub ca: Option<String>,
    /// Claims that must be there with these values.
    pub required: Vec<(String, String)>,
    /// Accepted signature algorithms.
    pub algorithms: Vec<String>,
}

/// A service that answers reviews.
#[derive(Clone, Debug)]
pub struct Webhook {
    /// How it is reached.
    pub config: Kubeconfig,
    /// The version of the reviews it is sent: `v1` or `v1beta1`.
    pub version: String,
    /// How long a good answer is remembered.
    pub good: Duration,
    /// How long a bad answer is remembered.
    pub bad: Duration,
}

/// One of the authorizers that can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Authorizer {
    /// The rules for nodes.
    Node,
    /// Roles and bindings.
    Rbac,
    /// A policy file.
    Abac,
    /// Another service.
    Webhook,
    /// Everything is allowed.
    AlwaysAllow,
    /// Everything is refused, but to administrators.
    AlwaysDeny,
}

impl Authorizer {
    /// Every authorizer by the name its flag has.
    pub const NAMES: [(&'static str, Self); 6] = [
        ("Node", Self::Node),
        ("RBAC", Self::Rbac),
        ("ABAC", Self::Abac),
        ("Webhook", Self::Webhook),
        ("AlwaysAllow", Self::AlwaysAllow),
        ("AlwaysDeny", Self::AlwaysDeny),
    ];
}

/// Who may do what: the authorizers that are asked, in order.
#[derive(Clone, Debug)]
pub struct Authorization {
    /// The order.
    pub modes: Vec<Authorizer>,
    /// What [`Authorizer::Abac`] goes by.
    pub policy: abac::Policy,
    /// Whom [`Authorizer::Webhook`] asks.
    pub webhook: Option<Webhook>,
}

impl Default for Authorization {
    fn default() -> Self {
        let modes = vec![Authorizer::Node, Authorizer::Rbac];
        Self { modes, policy: abac::Policy::default(), webhook: None }
    }
}

/// Proxies that authenticate users themselves and name them in headers.
#[derive(Clone, Debug)]
pub struct RequestHeader {
    /// The authority (PEM) of the proxies' client certificates.
    pub ca: String,
    /// Common names the certificates may have; empty for any.
    pub allowed_names: Vec<String>,
    /// Headers with the user's name, the first that is there counts.
    pub username: Vec<String>,
    /// Headers with the user's uid.
    pub uid: Vec<String>,
    /// Headers with groups, one each.
    pub group: Vec<String>,
    /// What headers with more about the user begin with.
    pub extra_prefix: Vec<String>,
}

impl RequestHeader {
    /// With that authority, the one name the server's own proxy has, and the usual headers.
    pub fn of(ca: impl Into<String>) -> Self {
        let one = |name: &str| vec![name.to_owned()];
        Self {
            ca: ca.into(),
            allowed_names: one("front-proxy-client"),
            username: one("X-Remote-User"),
            uid: one("X-Remote-Uid"),
            group: one("X-Remote-Group"),
            extra_prefix: one("X-Remote-Extra-"),
        }
    }
}
