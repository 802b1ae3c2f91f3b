//! Who makes a request, and what they may do.

pub(crate) mod abac;
pub(crate) mod access_review;
pub(crate) mod accounts;
pub(crate) mod authn;
pub(crate) mod certificates;
pub(crate) mod front_proxy;
pub(crate) mod graph;
pub(crate) mod impersonation;
pub(crate) mod node;
pub(crate) mod oidc;
pub(crate) mod rbac;
pub(crate) mod remote;
pub(crate) mod rules;
pub(crate) mod settings;
pub(crate) mod token_review;
pub(crate) mod tokens;
pub(crate) mod user;

pub(crate) use authn::{Authenticator, Identity, PeerCertificate, Sources};
pub(crate) use rbac::{Decision, Rbac};
pub use remote::RemoteError;
pub(crate) use rules::Attributes;
pub use tokens::KeyError;
pub use user::User;
