//! Who makes a request, and what they may do.

pub(crate) mod authn;
pub(crate) mod rbac;
pub(crate) mod rules;
pub(crate) mod tokens;
pub(crate) mod user;

pub(crate) use authn::{Authenticator, Identity, PeerCertificate};
pub(crate) use rbac::{Decision, Rbac};
pub(crate) use rules::Attributes;
pub use tokens::KeyError;
pub use user::User;
