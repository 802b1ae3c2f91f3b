//! Tokens of service accounts: signed JSON web tokens, bound to what they were asked for.

use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, encode};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use thiserror::Error;

/// Why a key cannot be used.
#[derive(Debug, Error)]
pub enum KeyError {
    /// It is no private key of a kind that can sign tokens.
    #[error("the service account key must be a PKCS#8 PEM of a P-256 or RSA private key")]
    Unusable,
}

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

/// Signs and verifies the tokens of service accounts.
pub(crate) struct Signer {
    issuer: String,
    algorithm: Algorithm,
    signing: EncodingKey,
    verifying: DecodingKey,
    key_id: String,
    jwk: Value,
}

impl Signer {
    /// With a private key (PKCS#8 PEM).
    ///
    /// # Errors
    /// When the key is not of a kind that can sign.
    pub(crate) fn new(pem: &str, issuer: &str) -> Result<Self, KeyError> {
        let pair = rcgen::KeyPair::from_pem(pem).map_err(|_| KeyError::Unusable)?;
        let public_pem = pair.public_key_pem();
        let raw = pair.public_key_raw().to_vec();
        let ec = pair.is_compatible(&rcgen::PKCS_ECDSA_P256_SHA256);
        let unusable = |_| KeyError::Unusable;
        let (algorithm, signing, verifying) = if ec {
            (
                Algorithm::ES256,
                EncodingKey::from_ec_pem(pem.as_bytes()).map_err(unusable)?,
                DecodingKey::from_ec_pem(public_pem.as_bytes()).map_err(unusable)?,
            )
        } else if pair.is_compatible(&rcgen::PKCS_RSA_SHA256) {
            (
                Algorithm::RS256,
                EncodingKey::from_rsa_pem(pem.as_bytes()).map_err(unusable)?,
                DecodingKey::from_rsa_pem(public_pem.as_bytes()).map_err(unusable)?,
            )
        } else {
            return Err(KeyError::Unusable);
        };
        let key_id = url_base64(&Sha256::digest(&raw));
        let jwk =
            if ec { ec_jwk(&raw, &key_id) } else { rsa_jwk(&raw, &key_id) }.ok_or(KeyError::Unusable)?;
        Ok(Self { issuer: issuer.into(), algorithm, signing, verifying, key_id, jwk })
    }

    /// The issuer.
    pub(crate) fn issuer(&self) -> &str {
        &self.issuer
    }

    /// The signature algorithm's name.
    pub(crate) fn algorithm(&self) -> &'static str {
        if self.algorithm == Algorithm::ES256 { "ES256" } else { "RS256" }
    }

    /// The key set that verifies the tokens.
    pub(crate) fn key_set(&self) -> Value {
        json!({ "keys": [self.jwk] })
    }

    /// Signs claims.
    ///
    /// # Errors
    /// When the key refuses.
    pub(crate) fn sign(&self, claims: &Claims) -> Result<String, jsonwebtoken::errors::Error> {
        let mut header = Header::new(self.algorithm);
        header.typ = None;
        header.kid = Some(self.key_id.clone());
        encode(&header, claims, &self.signing)
    }

    /// Verifies signature, issuer and times; `None` when any is wrong. The audience is the caller's matter.
    pub(crate) fn verify(&self, token: &str) -> Option<Claims> {
        let mut rules = Validation::new(self.algorithm);
        rules.set_issuer(&[&self.issuer]);
        rules.validate_aud = false;
        rules.validate_nbf = true;
        rules.leeway = 5;
        decode::<Claims>(token, &self.verifying, &rules).ok().map(|data| data.claims)
    }
}

fn url_base64(bytes: &[u8]) -> String {
    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
    URL_SAFE_NO_PAD.encode(bytes)
}

/// The key of an uncompressed point of P-256.
fn ec_jwk(point: &[u8], key_id: &str) -> Option<Value> {
    let coordinates = point.strip_prefix(&[4]).filter(|p| p.len() == 64)?;
    let (x, y) = coordinates.split_at(32);
    Some(json!({
        "use": "sig", "kty": "EC", "kid": key_id, "crv": "P-256", "alg": "ES256",
        "x": url_base64(x), "y": url_base64(y),
    }))
}

/// The key of a DER `RSAPublicKey`.
fn rsa_jwk(der: &[u8], key_id: &str) -> Option<Value> {
    let (body, _) = der_value(der, 0x30)?;
    let (modulus, rest) = der_value(body, 0x02)?;
    let (exponent, _) = der_value(rest, 0x02)?;
    let number = |bytes: &[u8]| {
        let zeros = bytes.iter().take_while(|b| **b == 0).count();
        url_base64(&bytes[zeros..])
    };
    Some(json!({
        "use": "sig", "kty": "RSA", "kid": key_id, "alg": "RS256",
        "n": number(modulus), "e": number(exponent),
    }))
}

/// The content of a DER value of that tag, and what follows it.
fn der_value(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let rest = der.strip_prefix(&[tag])?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = if first < 0x80 {
        (usize::from(first), rest)
    } else {
        let bytes = rest.get(..usize::from(first & 0x7f).min(4))?;
        (bytes.iter().fold(0, |n, b| n << 8 | usize::from(*b)), &rest[bytes.len()..])
    };
    Some((rest.get(..length)?, rest.get(length..)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signer() -> Signer {
        Signer::new(&rcgen::KeyPair::generate().unwrap().serialize_pem(), "https://issuer").unwrap()
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
        let (mine, other) = (signer(), signer());
        let good = claims(i64::from(u32::MAX));
        let token = mine.sign(&good).unwrap();
        assert_eq!(mine.verify(&token), Some(good));
        assert_eq!(other.verify(&token), None);
        assert_eq!(mine.verify(&mine.sign(&claims(1000)).unwrap()), None);
        assert_eq!(mine.verify("a.b.c"), None);
        assert_eq!(mine.key_set()["keys"][0]["crv"], "P-256");
    }
}
