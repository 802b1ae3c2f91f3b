//! OpenID Connect: tokens of a trusted issuer, whose keys are read from where it publishes them.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwapOption;
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header, jwk::JwkSet};
use serde_json::{Map, Value};
use tokio::sync::Mutex;

use super::{
    remote::{Remote, RemoteError},
    settings::Oidc,
    user::User,
};

/// How soon the keys may be read again when a token names an unknown one.
const AGAIN_AFTER: Duration = Duration::from_secs(1);
/// Clocks may differ by that many seconds.
const LEEWAY: i64 = 10;
/// Most keys an issuer may have.
const MAX_KEYS: usize = 100;

/// A trusted issuer.
pub(crate) struct Issuer {
    settings: Oidc,
    algorithms: Vec<Algorithm>,
    remote: Remote,
    keys: ArcSwapOption<JwkSet>,
    read: Mutex<Option<Instant>>,
}

impl Issuer {
    /// As the settings say. Does not connect.
    ///
    /// # Errors
    /// When the issuer is no URL, or an algorithm is unknown.
    pub(crate) fn new(settings: Oidc) -> Result<Self, RemoteError> {
        let unknown = |name: &String| RemoteError::Config(format!("unknown signature algorithm {name:?}"));
        let algorithms = settings.algorithms.iter().map(|name| name.parse().map_err(|_| unknown(name)));
        let algorithms = algorithms.collect::<Result<Vec<Algorithm>, _>>()?;
        let remote = Remote::at(&settings.issuer, settings.ca.as_deref())?;
        Ok(Self { settings, algorithms, remote, keys: ArcSwapOption::empty(), read: Mutex::new(None) })
    }

    /// The user of a token; `None` when it is not the issuer's, or not good at that second.
    pub(crate) async fn user(&self, token: &str, now: i64) -> Option<User> {
        let header = decode_header(token).ok().filter(|h| self.algorithms.contains(&h.alg))?;
        if unverified(token)?.get("iss")?.as_str()? != self.settings.issuer {
            return None;
        }
        let kid = header.kid.as_deref().unwrap_or("");
        let claims = match self.check(token, kid, header.alg) {
            Some(claims) => claims,
            None => {
                // The issuer may have changed its keys.
                self.refresh().await;
                self.check(token, kid, header.alg)?
            }
        };
        self.read_claims(&claims, now)
    }

    /// The claims, if one of the known keys signed them.
    fn check(&self, token: &str, kid: &str, algorithm: Algorithm) -> Option<Map<String, Value>> {
        let keys = self.keys.load_full()?;
        let mut rules = Validation::new(algorithm);
        rules.set_issuer(&[&self.settings.issuer]);
        rules.set_audience(&[&self.settings.client_id]);
        rules.set_required_spec_claims(&["aud", "exp", "iss"]);
        // The times are looked at with the server's own clock.
        rules.validate_exp = false;
        let fitting = keys.keys.iter().filter(|k| {
            let id = k.common.key_id.as_deref().unwrap_or("");
            kid.is_empty() || id.is_empty() || id == kid
        });
        fitting
            .filter_map(|jwk| DecodingKey::from_jwk(jwk).ok())
            .find_map(|key| decode::<Map<String, Value>>(token, &key, &rules).ok())
            .map(|data| data.claims)
    }

    /// Reads the issuer's keys anew, one reader at a time and not too often.
    async fn refresh(&self) {
        let mut read = self.read.lock().await;
        if read.is_some_and(|at| at.elapsed() < AGAIN_AFTER) {
            return;
        }
        match self.published().await {
            Ok(keys) => self.keys.store(Some(Arc::new(keys))),
            Err(error) => {
                tracing::warn!(issuer = %self.settings.issuer, %error, "the keys of the issuer cannot be read");
            }
        }
        *read = Some(Instant::now());
    }

    async fn published(&self) -> Result<JwkSet, RemoteError> {
        let wrong = |why: String| RemoteError::Config(why);
        let issuer = &self.settings.issuer;
        let at = |url: &str| {
            let uri: http::Uri = url.parse().map_err(|_| wrong(format!("{url:?} is no URL")))?;
            Ok(uri.path_and_query().map_or_else(|| "/".to_owned(), ToString::to_string))
        };
        let place = format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'));
        let document = self.remote.get(&at(&place)?).await?;
        let text = |key: &str| document.get(key).and_then(Value::as_str).unwrap_or("");
        if text("issuer") != issuer {
            return Err(wrong(format!("the issuer at {issuer} calls itself {:?}", text("issuer"))));
        }
        let keys = text("jwks_uri");
        let same_server = keys.parse::<http::Uri>().ok().and_then(|u| u.authority().cloned())
            == issuer.parse::<http::Uri>().ok().and_then(|u| u.authority().cloned());
        let set = if same_server {
            self.remote.get(&at(keys)?).await?
        } else {
            Remote::at(keys, self.settings.ca.as_deref())?.get(&at(keys)?).await?
        };
        // Keys of kinds that are not known here must not hide the others.
        let mut known = JwkSet { keys: Vec::new() };
        let listed = set.get("keys").and_then(Value::as_array).into_iter().flatten().take(MAX_KEYS);
        known.keys.extend(listed.filter_map(|key| serde_json::from_value(key.clone()).ok()));
        Ok(known)
    }

    fn read_claims(&self, claims: &Map<String, Value>, now: i64) -> Option<User> {
        let s = &self.settings;
        let time = |key: &str| claims.get(key).and_then(Value::as_f64);
        #[allow(clippy::cast_precision_loss, reason = "seconds since 1970 are far below 2^52")]
        let (early, late) = ((now + LEEWAY) as f64, (now - LEEWAY) as f64);
        if time("exp")? <= late || time("nbf").is_some_and(|from| from > early) {
            return None;
        }
        let required = |(key, value): &(String, String)| {
            claims.get(key).and_then(Value::as_str).is_some_and(|found| found == value)
        };
        if !s.required.iter().all(required) {
            return None;
        }
        let name = claims.get(&s.username_claim)?.as_str().filter(|name| !name.is_empty())?;
        let verified = claims.get("email_verified").is_none_or(|v| v == &Value::Bool(true));
        if s.username_claim == "email" && !verified {
            return None;
        }
        let prefix = match s.username_prefix.as_deref() {
            Some("-") => String::new(),
            Some(prefix) => prefix.to_owned(),
            None if s.username_claim == "email" => String::new(),
            None => format!("{}#", s.issuer),
        };
        let groups = match claims.get(&s.groups_claim) {
            Some(Value::String(one)) => vec![one.as_str()],
            Some(Value::Array(all)) => all.iter().filter_map(Value::as_str).collect(),
            _ => Vec::new(),
        };
        let groups = groups.into_iter().map(|group| format!("{}{group}", s.groups_prefix));
        let mut user = User::new(format!("{prefix}{name}"), groups);
        if let Some(id) = claims.get("jti").and_then(Value::as_str) {
            user.extra.insert("authentication.kubernetes.io/credential-id".into(), vec![format!("JTI={id}")]);
        }
        Some(user)
    }
}

/// The claims of a token nobody has verified yet.
pub(crate) fn unverified(token: &str) -> Option<Map<String, Value>> {
    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
    let claims = token.split('.').nth(1)?;
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).ok()?).ok()
}
