//! Values under lock: the envelopes that Kubernetes writes, `k8s:enc:<cipher>:v1:<key name>:<bytes>`.
//!
//! | cipher | bytes |
//! |---|---|
//! | `aesgcm` | nonce (12), ciphertext, tag (16); the store's key is authenticated with it |
//! | `aescbc` | initialization vector (16), ciphertext with PKCS #7 padding; tells nothing of tampering |
//! | `secretbox` | nonce (24), tag (16), ciphertext: XSalsa20 and Poly1305 as in NaCl |

use aes::cipher::{BlockDecryptMut, BlockEncryptMut, KeyIvInit, block_padding::Pkcs7};
use aes::{Aes128, Aes192, Aes256};
use aes_gcm::aead::consts::U12;
use aes_gcm::aead::rand_core::RngCore;
use aes_gcm::aead::{Aead, AeadCore, KeyInit, Nonce, OsRng, Payload};
use aes_gcm::{Aes128Gcm, Aes256Gcm, AesGcm};
use crypto_secretbox::XSalsa20Poly1305;

/// What every envelope starts with.
const ENVELOPE: &[u8] = b"k8s:enc:";
/// Bytes of an initialization vector of AES-CBC.
const IV: usize = 16;

/// A way to encrypt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cipher {
    /// AES-GCM, with a key of 16, 24 or 32 bytes. A key must not encrypt more than about 200,000 values.
    AesGcm,
    /// AES-CBC, with a key of 16, 24 or 32 bytes. Does not notice tampering; for data that has it already.
    AesCbc,
    /// XSalsa20 and Poly1305, with a key of 32 bytes.
    Secretbox,
}

impl Cipher {
    /// Its name in envelopes and configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::AesGcm => "aesgcm",
            Self::AesCbc => "aescbc",
            Self::Secretbox => "secretbox",
        }
    }

    /// Lengths a key may have, in bytes.
    pub fn key_lengths(self) -> &'static [usize] {
        match self {
            Self::AesGcm | Self::AesCbc => &[16, 24, 32],
            Self::Secretbox => &[32],
        }
    }

    /// The beginning of every envelope made with a key of that name.
    pub(super) fn prefix(self, key_name: &str) -> Vec<u8> {
        [ENVELOPE, self.name().as_bytes(), b":v1:", key_name.as_bytes(), b":"].concat()
    }

    /// Encrypts a value of the store's key `at`; without the envelope's beginning.
    pub(super) fn encrypt(self, secret: &[u8], at: &[u8], plain: &[u8]) -> Result<Vec<u8>, &'static str> {
        match (self, secret.len()) {
            (Self::AesGcm, 16) => encrypt_aead::<Aes128Gcm>(secret, at, plain),
            (Self::AesGcm, 24) => encrypt_aead::<AesGcm<Aes192, U12>>(secret, at, plain),
            (Self::AesGcm, _) => encrypt_aead::<Aes256Gcm>(secret, at, plain),
            (Self::AesCbc, 16) => encrypt_cbc::<cbc::Encryptor<Aes128>>(secret, plain),
            (Self::AesCbc, 24) => encrypt_cbc::<cbc::Encryptor<Aes192>>(secret, plain),
            (Self::AesCbc, _) => encrypt_cbc::<cbc::Encryptor<Aes256>>(secret, plain),
            (Self::Secretbox, _) => encrypt_aead::<XSalsa20Poly1305>(secret, b"", plain),
        }
    }

    /// Reverses [`encrypt`](Self::encrypt).
    pub(super) fn decrypt(self, secret: &[u8], at: &[u8], data: &[u8]) -> Result<Vec<u8>, &'static str> {
        match (self, secret.len()) {
            (Self::AesGcm, 16) => decrypt_aead::<Aes128Gcm>(secret, at, data),
            (Self::AesGcm, 24) => decrypt_aead::<AesGcm<Aes192, U12>>(secret, at, data),
            (Self::AesGcm, _) => decrypt_aead::<Aes256Gcm>(secret, at, data),
            (Self::AesCbc, 16) => decrypt_cbc::<cbc::Decryptor<Aes128>>(secret, data),
            (Self::AesCbc, 24) => decrypt_cbc::<cbc::Decryptor<Aes192>>(secret, data),
            (Self::AesCbc, _) => decrypt_cbc::<cbc::Decryptor<Aes256>>(secret, data),
            (Self::Secretbox, _) => decrypt_aead::<XSalsa20Poly1305>(secret, b"", data),
        }
    }
}

/// Whether a value is in an envelope of any kind.
pub(super) fn is_sealed(value: &[u8]) -> bool {
    value.starts_with(ENVELOPE)
}

const KEY_LENGTH: &str = "the key has a wrong length";

fn encrypt_aead<C: Aead + KeyInit + AeadCore>(
    secret: &[u8],
    aad: &[u8],
    plain: &[u8],
) -> Result<Vec<u8>, &'static str> {
    let cipher = C::new_from_slice(secret).map_err(|_| KEY_LENGTH)?;
    let nonce = C::generate_nonce(OsRng);
    let body = cipher.encrypt(&nonce, Payload { msg: plain, aad }).map_err(|_| "the cipher refused it")?;
    Ok([&nonce[..], &body].concat())
}

fn decrypt_aead<C: Aead + KeyInit + AeadCore>(
    secret: &[u8],
    aad: &[u8],
    data: &[u8],
) -> Result<Vec<u8>, &'static str> {
    let cipher = C::new_from_slice(secret).map_err(|_| KEY_LENGTH)?;
    let mut nonce = Nonce::<C>::default();
    let (head, body) = data.split_at_checked(nonce.len()).ok_or("it is cut short")?;
    nonce.copy_from_slice(head);
    let opened = cipher.decrypt(&nonce, Payload { msg: body, aad });
    opened.map_err(|_| "it was not encrypted with this key, or was changed since")
}

fn encrypt_cbc<C: BlockEncryptMut + KeyIvInit>(secret: &[u8], plain: &[u8]) -> Result<Vec<u8>, &'static str> {
    let mut iv = [0; IV];
    OsRng.fill_bytes(&mut iv);
    let cipher = C::new_from_slices(secret, &iv).map_err(|_| KEY_LENGTH)?;
    Ok([&iv[..], &cipher.encrypt_padded_vec_mut::<Pkcs7>(plain)].concat())
}

fn decrypt_cbc<C: BlockDecryptMut + KeyIvInit>(secret: &[u8], data: &[u8]) -> Result<Vec<u8>, &'static str> {
    let (iv, body) = data.split_at_checked(IV).ok_or("it is cut short")?;
    let cipher = C::new_from_slices(secret, iv).map_err(|_| KEY_LENGTH)?;
    cipher.decrypt_padded_vec_mut::<Pkcs7>(body).map_err(|_| "it was not encrypted with this key")
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Cipher; 3] = [Cipher::AesGcm, Cipher::AesCbc, Cipher::Secretbox];

    #[test]
    fn every_cipher_opens_what_it_sealed_and_nothing_else() {
        for cipher in ALL {
            for len in cipher.key_lengths() {
                let (secret, other) = (vec![7; *len], vec![8; *len]);
                for plain in ["", "x", "sixteen bytes!!!", &"long ".repeat(1000)] {
                    let data = cipher.encrypt(&secret, b"/k", plain.as_bytes()).unwrap();
                    assert_eq!(
                        cipher.decrypt(&secret, b"/k", &data).unwrap(),
                        plain.as_bytes(),
                        "{cipher:?}"
                    );
                    assert_ne!(
                        data,
                        cipher.encrypt(&secret, b"/k", plain.as_bytes()).unwrap(),
                        "a new nonce"
                    );
                    assert_ne!(cipher.decrypt(&other, b"/k", &data).ok().as_deref(), Some(plain.as_bytes()));
                    for cut in [0, 5, 11, 20] {
                        assert!(cipher.decrypt(&secret, b"/k", &data[..cut]).is_err(), "{cipher:?} {cut}");
                    }
                }
            }
        }
    }

    #[test]
    fn tampering_and_moving_are_noticed() {
        for cipher in [Cipher::AesGcm, Cipher::Secretbox] {
            let data = cipher.encrypt(&[7; 32], b"/a", b"plain").unwrap();
            for at in 0..data.len() {
                let mut changed = data.clone();
                changed[at] ^= 1;
                assert!(cipher.decrypt(&[7; 32], b"/a", &changed).is_err(), "{cipher:?} byte {at}");
            }
        }
        let data = Cipher::AesGcm.encrypt(&[7; 32], b"/a", b"plain").unwrap();
        assert!(Cipher::AesGcm.decrypt(&[7; 32], b"/b", &data).is_err(), "a value belongs to its key");
    }

    fn bytes(hex: &str) -> Vec<u8> {
        let digit = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
        (0..hex.len()).step_by(2).map(digit).collect()
    }

    /// Published vectors, laid out as Kubernetes lays them out: NaCl's own for the box, NIST's for AES.
    #[test]
    fn published_vectors_open() {
        let secret = bytes("1b27556473e985d462cd51197a9a46c76009549eac6474f206c4ee0844f68389");
        let sealed = bytes(concat!(
            "69696ee955b62b73cd62bda875fc73d68219e0036b7a0b37",
            "f3ffc7703f9400e52a7dfb4b3d3305d98e993b9f48681273c29650ba32fc76ce48332ea7164d96a4476fb8c531a1186a",
            "c0dfc17c98dce87b4da7f011ec48c97271d2c20f9b928fe2270d6fb863d51738b48eeee314a7cc8ab932164548e526ae",
            "90224368517acfeabd6bb3732bc0e9da99832b61ca01b6de56244a9e88d5f9b37973f622a43d14a6599b1f654cb45a74",
            "e355a5"
        ));
        let plain = Cipher::Secretbox.decrypt(&secret, b"", &sealed).unwrap();
        assert_eq!(plain[..4], bytes("be075fc5"));
        assert_eq!(plain.len(), sealed.len() - 40);

        let secret = bytes("feffe9928665731c6d6a8f9467308308");
        let sealed = bytes(concat!(
            "cafebabefacedbaddecaf888",
            "42831ec2217774244b7221b784d0d49ce3aa212f2c02a4e035c17e2329aca12e",
            "21d514b25466931c7d8f6a5aac84aa051ba30b396a0aac973d58e0915bc94fbc",
            "3221a5db94fae95ae7121a47"
        ));
        let aad = bytes("feedfacedeadbeeffeedfacedeadbeefabaddad2");
        let plain = Cipher::AesGcm.decrypt(&secret, &aad, &sealed).unwrap();
        assert_eq!((plain.len(), &plain[..4]), (60, &bytes("d9313225")[..]));
    }
}
