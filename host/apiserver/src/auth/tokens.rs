//! Tokens of service accounts: signed JSON web tokens, bound to what they were asked for.

use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, decode_header, encode};
use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use thiserror::Error;
use x509_parser::{prelude::FromDer, public_key::PublicKey, x509::SubjectPublicKeyInfo};

/// Why a key cannot be used.
#[derive(Debug, Error)]
pub enum KeyError {
    /// It is no private key of a kind that can sign tokens.
    #[error("the service account key must be a PKCS#8 PEM of a P-256 or RSA private key")]
    Unusable,
    /// It is no key that can verify tokens.
    #[error(
        "a key of service accounts must be the PEM of a public or PKCS#8 private key, P-256, P-384 or RSA"
    )]
    Unverifiable,
}

/// Why no token could be signed.
#[derive(Debug, Error)]
pub(crate) enum SignError {
    #[error(transparent)]
    Claims(#[from] serde_json::Error),
    #[error(transparent)]
    Rsa(#[from] jsonwebtoken::errors::Error),
    #[error("the key refused")]
    Curve,
}

/// The issuer that tokens in Secrets name.
pub(crate) const LEGACY_ISSUER: &str = "kubernetes/serviceaccount";
/// Clocks may differ by that many seconds.
const LEEWAY: i64 = 5;

/// A name and uid.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Bound {
    pub(crate) name: String,
    pub(crate) uid: String,
}

/// The part of the claims that is Kubernetes' own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Private {
    pub(crate) namespace: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) node: Option<Bound>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) pod: Option<Bound>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) secret: Option<Bound>,
    pub(crate) serviceaccount: Bound,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) warnafter: Option<i64>,
}

/// What a token says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Claims {
    pub(crate) aud: Vec<String>,
    pub(crate) exp: i64,
    pub(crate) iat: i64,
    pub(crate) iss: String,
    #[serde(default)]
    pub(crate) jti: String,
    #[serde(rename = "kubernetes.io")]
    pub(crate) private: Private,
    #[serde(default)]
    pub(crate) nbf: i64,
    pub(crate) sub: String,
}

/// What the token in a Secret says. It has no end: it is good as long as the Secret is there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LegacyClaims {
    pub(crate) iss: String,
    #[serde(rename = "kubernetes.io/serviceaccount/namespace")]
    pub(crate) namespace: String,
    #[serde(rename = "kubernetes.io/serviceaccount/secret.name")]
    pub(crate) secret: String,
    #[serde(rename = "kubernetes.io/serviceaccount/service-account.name")]
    pub(crate) account: String,
    #[serde(rename = "kubernetes.io/serviceaccount/service-account.uid")]
    pub(crate) uid: String,
    pub(crate) sub: String,
}

/// A public key that verifies tokens.
struct Verifier {
    algorithm: Algorithm,
    key: DecodingKey,
    id: String,
    jwk: Value,
}

/// Signs and verifies the tokens of service accounts.
pub(crate) struct Signer {
    issuers: Vec<String>,
    signing: Signing,
    /// The signing key's is first.
    verifiers: Vec<Verifier>,
}

/// A private key. Curves are ring's matter: each pod's start needs a token, and it signs ten times as fast.
enum Signing {
    Curve(Box<EcdsaKeyPair>, SystemRandom),
    Rsa(EncodingKey),
}

impl Signing {
    fn read(pem: &str, algorithm: Algorithm) -> Option<Self> {
        if algorithm == Algorithm::RS256 {
            return EncodingKey::from_rsa_pem(pem.as_bytes()).ok().map(Self::Rsa);
        }
        let der = rcgen::KeyPair::from_pem(pem).ok()?.serialize_der();
        let random = SystemRandom::new();
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &der, &random).ok()?;
        Some(Self::Curve(Box::new(key), random))
    }
}

impl Signer {
    /// With a private key (PKCS#8 PEM). `more_keys` and `more_issuers` are accepted, but sign nothing.
    ///
    /// # Errors
    /// When a key is not of a kind that can be used.
    pub(crate) fn new(
        pem: &str,
        issuer: &str,
        more_keys: &[String],
        more_issuers: &[String],
    ) -> Result<Self, KeyError> {
        let mut verifiers = vec![Verifier::read(pem).map_err(|_| KeyError::Unusable)?];
        let signing = Signing::read(pem, verifiers[0].algorithm).ok_or(KeyError::Unusable)?;
        for more in more_keys {
            let verifier = Verifier::read(more)?;
            if verifiers.iter().all(|v| v.id != verifier.id) {
                verifiers.push(verifier);
            }
        }
        let mut issuers = vec![issuer.to_owned()];
        issuers.extend(more_issuers.iter().cloned());
        Ok(Self { issuers, signing, verifiers })
    }

    /// The issuer of new tokens.
    pub(crate) fn issuer(&self) -> &str {
        &self.issuers[0]
    }

    /// The signature algorithms' names.
    pub(crate) fn algorithms(&self) -> Vec<String> {
        let mut names: Vec<String> = self.verifiers.iter().map(|v| format!("{:?}", v.algorithm)).collect();
        names.dedup();
        names
    }

    /// The key set that verifies the tokens.
    pub(crate) fn key_set(&self) -> Value {
        json!({ "keys": self.verifiers.iter().map(|v| &v.jwk).collect::<Vec<_>>() })
    }

    /// Signs claims.
    ///
    /// # Errors
    /// When the key refuses.
    pub(crate) fn sign<C: Serialize>(&self, claims: &C) -> Result<String, SignError> {
        let mut header = Header::new(self.verifiers[0].algorithm);
        header.typ = None;
        header.kid = Some(self.verifiers[0].id.clone());
        let (key, random) = match &self.signing {
            Signing::Rsa(key) => return Ok(encode(&header, claims, key)?),
            Signing::Curve(key, random) => (key, random),
        };
        let part = |json: Result<Vec<u8>, _>| json.map(|json| url_base64(&json));
        let text = [part(serde_json::to_vec(&header))?, part(serde_json::to_vec(claims))?].join(".");
        let signature = key.sign(random, text.as_bytes()).map_err(|_| SignError::Curve)?;
        Ok([text, url_base64(signature.as_ref())].join("."))
    }

    /// Verifies signature, issuer and, at that second, times; `None` when any is wrong. The audience is the
    /// caller's matter.
    pub(crate) fn verify(&self, token: &str, now: i64) -> Option<Claims> {
        let claims: Claims = self.signed(token, &self.issuers)?;
        (claims.exp + LEEWAY > now && claims.nbf <= now + LEEWAY).then_some(claims)
    }

    /// Verifies the token of a Secret.
    pub(crate) fn verify_legacy(&self, token: &str) -> Option<LegacyClaims> {
        self.signed(token, &[LEGACY_ISSUER.to_owned()])
    }

    fn signed<C: DeserializeOwned>(&self, token: &str, issuers: &[String]) -> Option<C> {
        let header = decode_header(token).ok()?;
        let fits =
            |v: &&Verifier| v.algorithm == header.alg && header.kid.as_ref().is_none_or(|kid| *kid == v.id);
        self.verifiers.iter().filter(fits).find_map(|verifier| {
            let mut rules = Validation::new(verifier.algorithm);
            rules.set_issuer(issuers);
            rules.set_required_spec_claims(&["iss"]);
            rules.validate_aud = false;
            // The times are looked at with the server's own clock.
            rules.validate_exp = false;
            let claims: Map<String, Value> = decode(token, &verifier.key, &rules).ok()?.claims;
            serde_json::from_value(claims.into()).ok()
        })
    }
}

impl Verifier {
    /// From a public key, or the public part of a private one.
    fn read(pem: &str) -> Result<Self, KeyError> {
        let public = if pem.contains("BEGIN PUBLIC KEY") {
            pem.to_owned()
        } else {
            rcgen::KeyPair::from_pem(pem).map_err(|_| KeyError::Unverifiable)?.public_key_pem()
        };
        let (_, der) =
            x509_parser::pem::parse_x509_pem(public.as_bytes()).map_err(|_| KeyError::Unverifiable)?;
        let (_, info) = SubjectPublicKeyInfo::from_der(&der.contents).map_err(|_| KeyError::Unverifiable)?;
        let id = url_base64(&Sha256::digest(&der.contents));
        let wrong = |_| KeyError::Unverifiable;
        match info.parsed().map_err(|_| KeyError::Unverifiable)? {
            PublicKey::EC(point) => {
                let (algorithm, name, curve) = match point.data().len() {
                    65 => (Algorithm::ES256, "ES256", "P-256"),
                    97 => (Algorithm::ES384, "ES384", "P-384"),
                    _ => return Err(KeyError::Unverifiable),
                };
                let (x, y) = point.data()[1..].split_at(point.data().len() / 2);
                let jwk = json!({
                    "use": "sig", "kty": "EC", "kid": id, "crv": curve, "alg": name,
                    "x": url_base64(x), "y": url_base64(y),
                });
                let key = DecodingKey::from_ec_pem(public.as_bytes()).map_err(wrong)?;
                Ok(Self { algorithm, key, id, jwk })
            }
            PublicKey::RSA(rsa) => {
                let number = |bytes: &[u8]| {
                    let zeros = bytes.iter().take_while(|b| **b == 0).count();
                    url_base64(&bytes[zeros..])
                };
                let jwk = json!({
                    "use": "sig", "kty": "RSA", "kid": id, "alg": "RS256",
                    "n": number(rsa.modulus), "e": number(rsa.exponent),
                });
                let key = DecodingKey::from_rsa_pem(public.as_bytes()).map_err(wrong)?;
                Ok(Self { algorithm: Algorithm::RS256, key, id, jwk })
            }
            _ => Err(KeyError::Unverifiable),
        }
    }
}

fn url_base64(bytes: &[u8]) -> String {
    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
    URL_SAFE_NO_PAD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 10_000;

    fn key() -> rcgen::KeyPair {
        rcgen::KeyPair::generate().unwrap()
    }

    fn signer(key: &rcgen::KeyPair, more: &[String]) -> Signer {
        Signer::new(&key.serialize_pem(), "https://issuer", more, &[]).unwrap()
    }

    fn claims(exp: i64) -> Claims {
        Claims {
            aud: vec!["a".into()],
            exp,
            iat: 1,
            iss: "https://issuer".into(),
            sub: "s".into(),
            ..Claims::default()
        }
    }

    #[test]
    fn tokens_verify_until_they_expire_and_only_with_their_key() {
        let (mine, other) = (signer(&key(), &[]), signer(&key(), &[]));
        let good = claims(NOW + 100);
        let token = mine.sign(&good).unwrap();
        assert_eq!(mine.verify(&token, NOW), Some(good));
        assert_eq!(mine.verify(&token, NOW + 106), None);
        assert_eq!(other.verify(&token, NOW), None);
        assert_eq!(mine.verify("a.b.c", NOW), None);
        assert_eq!(mine.key_set()["keys"][0]["crv"], "P-256");
        let early = Claims { nbf: NOW + 50, ..claims(NOW + 100) };
        assert_eq!(mine.verify(&mine.sign(&early).unwrap(), NOW), None);
    }

    #[test]
    fn an_earlier_key_still_verifies() {
        let (old, new) = (key(), key());
        let token = signer(&old, &[]).sign(&claims(NOW + 1)).unwrap();
        assert!(signer(&new, &[]).verify(&token, NOW).is_none());
        for pem in [old.public_key_pem(), old.serialize_pem()] {
            let both = signer(&new, &[pem]);
            assert!(both.verify(&token, NOW).is_some());
            assert_eq!(both.key_set()["keys"].as_array().unwrap().len(), 2);
        }
        assert!(Signer::new(&new.serialize_pem(), "i", &["nonsense".into()], &[]).is_err());
        assert!(Signer::new(&new.public_key_pem(), "i", &[], &[]).is_err());
    }

    #[test]
    fn tokens_of_secrets_have_an_issuer_of_their_own() {
        let signer = signer(&key(), &[]);
        let legacy =
            LegacyClaims { iss: LEGACY_ISSUER.into(), secret: "s".into(), ..LegacyClaims::default() };
        let token = signer.sign(&legacy).unwrap();
        assert_eq!(signer.verify_legacy(&token), Some(legacy));
        assert!(signer.verify(&token, NOW).is_none());
        assert!(signer.verify_legacy(&signer.sign(&claims(NOW + 1)).unwrap()).is_none());
    }
}
