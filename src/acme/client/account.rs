//! Our account at a CA. Its key is on disk before the CA learns of it, so a crash loses neither key nor account.
//!
//! We register it ourselves (RFC 8555 §7.3, §7.3.4): instant-acme would generate the key and keep it in memory until
//! the CA has answered. Registering a key that the CA knows returns the same account.

use std::io;
use std::path::{Path, PathBuf};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use aws_lc_rs::{digest, hmac};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::Request;
use http::header::{CONTENT_TYPE, LOCATION};
use instant_acme::Problem;
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::directory_meta::DirectoryMeta;
use super::http::AcmeHttp;
use super::{NONCE_TRIES, refusal};
use crate::acme::failure::AcmeFailure;
use crate::acme::settings::Contact;
use crate::ca::KeyKind;
use crate::files::read_regular_text;
use crate::state;

/// An account's folder: `account.key`, and `account.json` once it is registered.
pub(super) struct AccountStore {
    folder: PathBuf,
}

/// An account that the CA has confirmed.
pub(super) struct Registered {
    pub(super) id: String,
    pub(super) key: PrivatePkcs8KeyDer<'static>,
}

#[derive(Serialize, Deserialize)]
struct Confirmation {
    directory: String,
    id: String,
}

/// What a registration sends besides the key.
pub(super) struct Registration<'a> {
    pub(super) contact: &'a [Contact],
    pub(super) external: Option<(&'a str, &'a HmacKey)>,
}

/// The HMAC key of an external account. It has no `Debug`, so it cannot be printed.
pub(super) struct HmacKey(hmac::Key);

impl AccountStore {
    pub(super) fn new(accounts: &Path, directory: &str) -> Self {
        let digest = digest::digest(&digest::SHA256, directory.as_bytes());
        let name: String = digest.as_ref().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        Self { folder: accounts.join(name) }
    }

    /// What is stored of the registration. Damaged, it is treated as absent: registering the same key returns the same
    /// account.
    fn confirmation(&self) -> Result<Option<Confirmation>, AcmeFailure> {
        match state::read(&self.folder.join("account.json")) {
            Ok(bytes) => Ok(serde_json::from_slice::<Confirmation>(&bytes).ok()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(AcmeFailure::disk("account.json", &error)),
        }
    }

    /// The account, if one is registered and its key is there.
    pub(super) fn registered(&self) -> Result<Option<Registered>, AcmeFailure> {
        let Some(kept) = self.confirmation()? else { return Ok(None) };
        Ok(match self.stored_key()? {
            StoredKey::Usable(key) => Some(Registered { id: kept.id, key }),
            StoredKey::Absent | StoredKey::Damaged(_) => None,
        })
    }

    /// Reads the account key. Generates and stores one if there is none. A damaged file is renamed, and kept.
    pub(super) fn key(&self) -> Result<PrivatePkcs8KeyDer<'static>, AcmeFailure> {
        let path = self.key_path();
        match self.stored_key()? {
            StoredKey::Usable(key) => return Ok(key),
            StoredKey::Absent => {}
            StoredKey::Damaged(reason) => {
                let aside = state::put_aside(&path, &path.with_extension("key.damaged"))
                    .map_err(|error| AcmeFailure::disk("account.key", &error))?;
                tracing::error!(
                    "{} is damaged ({reason}); renamed to {}, and a new account is registered with a new key; to keep the \
                     old account, restore the file from a backup",
                    path.display(),
                    aside.display()
                );
            }
        }
        let key =
            KeyKind::EcdsaP256.generate().map_err(|error| AcmeFailure::retry(format!("no account key: {error}")))?;
        // The registration is of another key.
        let kept = self
            .forget_registration()
            .and_then(|()| state::private_folder(&self.folder))
            .and_then(|()| state::write_private(&path, key.serialize_pem().as_bytes()))
            .and_then(|()| self.folder.parent().map_or(Ok(()), state::sync_folder));
        kept.map_err(|error| AcmeFailure::disk("account.key", &error))?;
        Ok(PrivatePkcs8KeyDer::from(key.serialize_der()))
    }

    fn key_path(&self) -> PathBuf {
        self.folder.join("account.key")
    }

    /// A read error is not an absent key: generating another key would lose the account.
    fn stored_key(&self) -> Result<StoredKey, AcmeFailure> {
        match state::read(&self.key_path()) {
            Ok(pem) => Ok(StoredKey::parse(&pem)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(StoredKey::Absent),
            Err(error) => Err(AcmeFailure::disk("account.key", &error)),
        }
    }

    pub(super) fn keep_registration(&self, directory: &str, id: &str) -> Result<(), AcmeFailure> {
        let confirmation = Confirmation { directory: directory.to_owned(), id: id.to_owned() };
        let written = serde_json::to_vec_pretty(&confirmation)
            .map_err(io::Error::from)
            .and_then(|bytes| state::write_private(&self.folder.join("account.json"), &bytes));
        written.map_err(|error| AcmeFailure::disk("account.json", &error))
    }

    /// The URL of the account, if one is registered, also if its key cannot be read.
    pub(super) fn url(&self) -> Result<Option<String>, AcmeFailure> {
        Ok(self.confirmation()?.map(|kept| kept.id))
    }

    /// Renames the key of an account that can no longer be used. The next [`key`](Self::key) is a new one.
    pub(super) fn put_key_aside(&self) -> Result<PathBuf, AcmeFailure> {
        let path = self.key_path();
        let aside = state::put_aside(&path, &path.with_extension("key.deactivated"));
        let aside = aside.and_then(|aside| self.forget_registration().map(|()| aside));
        aside.map_err(|error| AcmeFailure::disk("account.key", &error))
    }

    /// Removes `account.json` and keeps the key.
    pub(super) fn forget_registration(&self) -> io::Result<()> {
        state::remove_all(&self.folder.join("account.json"))
    }
}

/// What `account.key` contains.
enum StoredKey {
    Absent,
    Usable(PrivatePkcs8KeyDer<'static>),
    /// The file exists and contains no key that can sign, for this reason.
    Damaged(String),
}

impl StoredKey {
    fn parse(pem: &[u8]) -> Self {
        let Ok(key) = PrivatePkcs8KeyDer::from_pem_slice(pem) else {
            return Self::Damaged("it is not a private key in PEM".to_owned());
        };
        match EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, key.secret_pkcs8_der()) {
            Ok(_) => Self::Usable(key),
            Err(error) => Self::Damaged(format!("it is not an ECDSA key on P-256: {error}")),
        }
    }
}

impl HmacKey {
    /// Reads the key as the CA shows it: base64 or base64url, with or without padding.
    pub(super) fn read(file: &Path) -> Result<Self, AcmeFailure> {
        let wrong = |reason: String| AcmeFailure::action_required(format!("{}: {reason}", file.display()));
        let text = read_regular_text(file).map_err(|error| wrong(error.to_string()))?;
        let text = text.trim().trim_end_matches('=').replace('+', "-").replace('/', "_");
        // The decoder's error would quote the secret.
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| wrong("the key is not valid base64url".to_owned()))?;
        Ok(Self(hmac::Key::new(hmac::HMAC_SHA256, &bytes)))
    }
}

/// Registers `key` at the CA and returns the account's URL.
pub(super) async fn register(
    http: &AcmeHttp,
    directory: &str,
    key: &PrivatePkcs8KeyDer<'_>,
    registration: &Registration<'_>,
) -> Result<String, AcmeFailure> {
    let DirectoryMeta { new_nonce, new_account, .. } = DirectoryMeta::fetch(http, directory).await?;
    let signer = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, key.secret_pkcs8_der())
        .map_err(|error| AcmeFailure::action_required(format!("the account's key is damaged: {error}")))?;
    let jwk = public_key(&signer);
    let mut payload = json!({ "termsOfServiceAgreed": true });
    if !registration.contact.is_empty() {
        payload["contact"] = json!(registration.contact);
    }
    if let Some((key_id, hmac_key)) = registration.external {
        let header = json!({ "alg": "HS256", "kid": key_id, "url": new_account });
        payload["externalAccountBinding"] =
            signed(&header, &jwk, |text| Ok(hmac::sign(&hmac_key.0, text).as_ref().to_vec()))?;
    }
    for _ in 0..NONCE_TRIES {
        http.get(&new_nonce).await?;
        let header = json!({ "alg": "ES256", "jwk": jwk, "nonce": http.nonce()?, "url": new_account });
        let body = signed(&header, &payload, |text| {
            let signature = signer.sign(&SystemRandom::new(), text);
            signature.map(|it| it.as_ref().to_vec()).map_err(|_| AcmeFailure::retry("the account's key does not sign"))
        })?;
        let request = Request::post(&new_account).header(CONTENT_TYPE, "application/jose+json");
        let request = request
            .body(Bytes::from(body.to_string()))
            .map_err(|error| AcmeFailure::action_required(error.to_string()))?;
        let (parts, body) = http.exchange(request).await.map_err(|error| AcmeFailure::retry(error.to_string()))?;
        if parts.status.is_success() {
            let url = parts.headers.get(LOCATION).and_then(|url| url.to_str().ok()).map(str::to_owned);
            return url.ok_or_else(|| {
                AcmeFailure::retry(format!(
                    "{new_account}: the CA's answer has no Location header with the account's URL"
                ))
            });
        }
        let error =
            serde_json::from_slice::<Problem>(&body).map_or_else(instant_acme::Error::Json, instant_acme::Error::Api);
        if !refusal::is_bad_nonce(&error) {
            return Err(refusal::explain(&error, &http.seen()).during("the registration"));
        }
    }
    Err(AcmeFailure::retry(format!(
        "{new_account}: the CA refused {NONCE_TRIES} nonces that it had just issued; if this recurs, ask the CA"
    )))
}

/// A JWS in its flattened JSON form (RFC 7515 §7.2.2).
fn signed(
    header: &Value,
    payload: &Value,
    sign: impl Fn(&[u8]) -> Result<Vec<u8>, AcmeFailure>,
) -> Result<Value, AcmeFailure> {
    let (header, payload) = (encoded(header.to_string()), encoded(payload.to_string()));
    let signature = encoded(sign(format!("{header}.{payload}").as_bytes())?);
    Ok(json!({ "protected": header, "payload": payload, "signature": signature }))
}

fn public_key(key: &EcdsaKeyPair) -> Value {
    // An uncompressed point: 4, x, y.
    let (x, y) = key.public_key().as_ref()[1..].split_at(32);
    json!({ "crv": "P-256", "kty": "EC", "x": encoded(x), "y": encoded(y) })
}

fn encoded(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unreadable_account_key_is_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let store = AccountStore::new(folder.path(), "https://ca.example/directory");
        let key = store.key().unwrap();
        let path = store.folder.join("account.key");
        let aside = store.folder.join("aside");
        std::fs::rename(&path, &aside).unwrap();
        std::os::unix::fs::symlink(&path, &path).unwrap();
        let failure = store.key().err().unwrap().to_string();
        assert!(failure.contains("account.key"), "{failure}");
        std::fs::rename(&aside, &path).unwrap();
        assert_eq!(store.key().unwrap().secret_pkcs8_der(), key.secret_pkcs8_der());
    }

    #[test]
    fn damaged_key_is_kept_aside_and_replaced() {
        let accounts = tempfile::tempdir().unwrap();
        let directory = "https://ca.example/directory";
        let store = AccountStore::new(accounts.path(), directory);
        let first = store.key().unwrap();
        let good = std::fs::read(store.key_path()).unwrap();
        let rsa = KeyKind::Rsa2048.generate().unwrap().serialize_pem().into_bytes();
        let damaged: [&[u8]; 4] = [b"", b"not PEM", &good[..good.len() / 2], &rsa];
        let names = ["account.key.damaged", "account.key.damaged.2", "account.key.damaged.3", "account.key.damaged.4"];
        for (content, name) in damaged.into_iter().zip(names) {
            state::write_private(&store.key_path(), content).unwrap();
            store.keep_registration(directory, "https://ca.example/account/1").unwrap();
            assert!(store.registered().unwrap().is_none(), "{name}");
            assert_eq!(state::read(&store.key_path()).unwrap(), content, "reading changes nothing");
            let new = store.key().unwrap();
            assert_ne!(new.secret_pkcs8_der(), first.secret_pkcs8_der());
            assert_eq!(store.key().unwrap().secret_pkcs8_der(), new.secret_pkcs8_der(), "it is stored");
            assert!(store.registered().unwrap().is_none(), "the old registration is not used with the new key");
        }
        for (content, name) in damaged.into_iter().zip(names) {
            assert_eq!(state::read(&store.folder.join(name)).unwrap(), content, "{name}");
        }
    }

    #[test]
    fn deactivated_keys_are_all_kept_aside() {
        let folder = tempfile::tempdir().unwrap();
        let store = AccountStore::new(folder.path(), "https://ca.example/directory");
        let mut keys = Vec::new();
        for name in ["account.key.deactivated", "account.key.deactivated.2", "account.key.deactivated.3"] {
            keys.push(store.key().unwrap());
            store.keep_registration("https://ca.example/directory", "https://ca.example/account/1").unwrap();
            assert_eq!(store.put_key_aside().unwrap(), store.folder.join(name));
            assert!(store.url().unwrap().is_none() && store.registered().unwrap().is_none());
        }
        for (name, key) in ["", ".2", ".3"].iter().zip(keys) {
            let pem = state::read(&store.folder.join(format!("account.key.deactivated{name}"))).unwrap();
            let kept = PrivatePkcs8KeyDer::from_pem_slice(&pem).unwrap();
            assert_eq!(kept.secret_pkcs8_der(), key.secret_pkcs8_der());
        }
    }
}
