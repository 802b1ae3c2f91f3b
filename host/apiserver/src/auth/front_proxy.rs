//! Proxies that authenticate users themselves: their certificate is believed, and then their headers.

use http::HeaderMap;
use rustls_pki_types::CertificateDer;

use super::{certificates::Authorities, settings::RequestHeader, user::User};

/// The proxies that are believed.
pub(crate) struct FrontProxies {
    authorities: Authorities,
    settings: RequestHeader,
}

impl FrontProxies {
    /// As the settings say.
    pub(crate) fn new(settings: RequestHeader) -> Self {
        Self { authorities: Authorities::new(&settings.ca), settings }
    }

    /// From now on proxies of other authorities.
    pub(crate) fn replace(&self, bundle: &str) {
        self.authorities.replace(bundle);
    }

    /// The user that a proxy names; `None` when the client is none, or names nobody.
    pub(crate) fn user(&self, chain: &[CertificateDer<'_>], headers: &HeaderMap, now: i64) -> Option<User> {
        let first = |names: &[String]| {
            names.iter().find_map(|n| headers.get(n.as_str())?.to_str().ok().filter(|v| !v.is_empty()))
        };
        // The headers first: nearly no certificate is a proxy's.
        let name = first(&self.settings.username)?;
        let proxy = self.authorities.verify(chain, now)?;
        let allowed = &self.settings.allowed_names;
        if !allowed.is_empty() && !allowed.contains(&proxy.name) {
            return None;
        }
        let groups = self.settings.group.iter().flat_map(|n| headers.get_all(n.as_str()));
        let mut user = User::new(name, groups.filter_map(|v| v.to_str().ok().map(str::to_owned)));
        user.uid = first(&self.settings.uid).unwrap_or("").to_owned();
        for (header, value) in headers {
            let prefix = self.settings.extra_prefix.iter().map(|p| p.to_ascii_lowercase());
            let key = prefix.into_iter().find_map(|p| Some(header.as_str().strip_prefix(&p)?.to_owned()));
            if let (Some(key), Ok(value)) = (key, value.to_str()) {
                user.extra.entry(crate::http::request::decode(&key)).or_default().push(value.into());
            }
        }
        Some(user)
    }
}
