//! Certificates for tests: a factory PKI shaped like Polycom's (root, issuing CA, devices), and server certificates.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertificateRevocationList, CertificateRevocationListParams,
    DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PKCS_RSA_SHA256, RevokedCertParams, SerialNumber, SignatureAlgorithm,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

pub struct Ca {
    pub certificate: Certificate,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate chain with its key.
#[derive(Clone)]
pub struct Identity {
    pub chain: Vec<CertificateDer<'static>>,
    key: Arc<PrivateKeyDer<'static>>,
}

/// The factory: root, and an issuing CA below it.
pub struct Factory {
    pub root: Ca,
    pub issuing: Ca,
}

/// The factory of the suite, and one outside of its trust bundle.
pub static FACTORY: LazyLock<Factory> = LazyLock::new(|| Factory::new("Test Factory"));
pub static OTHER_FACTORY: LazyLock<Factory> = LazyLock::new(|| Factory::new("Other Factory"));
/// The CA of server certificates.
pub static SERVER_CA: LazyLock<Ca> = LazyLock::new(|| Ca::root("Test Server CA"));

pub const DAY: Duration = Duration::from_secs(86_400);

pub fn named(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name
}

pub fn ca_params(common_name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = named(common_name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    valid(&mut params, SystemTime::now() - DAY, SystemTime::now() + 3650 * DAY);
    params
}

/// A device's parameters as the factory writes them: `CN=<MAC in upper case>, O=Polycom Inc.`
pub fn device_params(mac: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = named(&mac.to_ascii_uppercase());
    params.distinguished_name.push(DnType::OrganizationName, "Polycom Inc.");
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    valid(&mut params, SystemTime::now() - DAY, SystemTime::now() + 3650 * DAY);
    params
}

pub fn valid(params: &mut CertificateParams, from: SystemTime, to: SystemTime) {
    params.not_before = from.into();
    params.not_after = to.into();
}

impl Ca {
    pub fn root(common_name: &str) -> Self {
        Self::root_with(common_name, KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap())
    }

    pub fn root_with(common_name: &str, key: KeyPair) -> Self {
        let params = ca_params(common_name);
        let certificate = params.self_signed(&key).unwrap();
        Self { certificate, issuer: Issuer::new(params, key) }
    }

    /// A CA below this one.
    pub fn below(&self, params: CertificateParams) -> Self {
        self.below_with(params, KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap())
    }

    pub fn below_with(&self, params: CertificateParams, key: KeyPair) -> Self {
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Self { certificate, issuer: Issuer::new(params, key) }
    }

    /// An ECDSA certificate of these parameters.
    pub fn issue(&self, params: &CertificateParams) -> Identity {
        self.issue_with(params, &KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap())
    }

    /// An RSA-2048 certificate of these parameters.
    pub fn issue_rsa(&self, params: &CertificateParams) -> Identity {
        self.issue_with(params, &KeyPair::generate_for(&PKCS_RSA_SHA256).unwrap())
    }

    pub fn issue_with(&self, params: &CertificateParams, key: &KeyPair) -> Identity {
        let certificate = params.signed_by(key, &self.issuer).unwrap();
        Identity {
            chain: vec![certificate.der().clone()],
            key: Arc::new(PrivateKeyDer::Pkcs8(key.serialize_der().into())),
        }
    }

    pub fn pem(&self) -> String {
        self.certificate.pem()
    }

    /// A CRL of this CA with these serial numbers, valid until `until`.
    pub fn crl(&self, serials: &[SerialNumber], until: SystemTime) -> CertificateRevocationList {
        let revoked = |serial: &SerialNumber| RevokedCertParams {
            serial_number: serial.clone(),
            revocation_time: (SystemTime::now() - DAY).into(),
            reason_code: None,
            invalidity_date: None,
        };
        self.sign_crl(&CertificateRevocationListParams {
            this_update: (SystemTime::now() - 2 * DAY).into(),
            next_update: until.into(),
            crl_number: 1.into(),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        })
    }

    /// A CRL with any parameters.
    pub fn sign_crl(&self, params: &CertificateRevocationListParams) -> CertificateRevocationList {
        params.signed_by(&self.issuer).unwrap()
    }

    /// A CA with the name of the certificate `pem`, but with a key of its own.
    pub fn impostor(pem: &str, algorithm: &'static SignatureAlgorithm) -> Self {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let certificate = ca_params("impostor").self_signed(&key).unwrap();
        Self { certificate, issuer: Issuer::from_ca_cert_pem(pem, key).unwrap() }
    }

    /// A new certificate of this CA with the same name and key, and other dates.
    pub fn renewed(&self, params: &CertificateParams) -> Certificate {
        params.self_signed(self.issuer.key()).unwrap()
    }

    /// A certificate for `subject` (`/CN=x+O=y`) with a new key, made by openssl with further `req` arguments, for what
    /// rcgen cannot make.
    pub fn issue_by_openssl(&self, subject: &str, arguments: &[&str]) -> Identity {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("ca.pem"), self.pem()).unwrap();
        std::fs::write(folder.path().join("ca.key"), self.issuer.key().serialize_pem()).unwrap();
        // Debian's configuration would make it a CA certificate.
        std::fs::write(folder.path().join("openssl.cnf"), "[req]\ndistinguished_name = dn\n[dn]\n").unwrap();
        let mut command = Command::new("openssl");
        command.args(
            "req -config openssl.cnf -x509 -noenc -CA ca.pem -CAkey ca.key -days 30 -out leaf.pem -keyout leaf.key"
                .split(' '),
        );
        command.args(["-subj", subject, "-utf8"]).args(arguments).current_dir(folder.path());
        let ended = command.output().expect("openssl");
        assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
        Identity {
            chain: vec![CertificateDer::from_pem_file(folder.path().join("leaf.pem")).unwrap()],
            key: Arc::new(PrivateKeyDer::from_pem_file(folder.path().join("leaf.key")).unwrap()),
        }
    }
}

impl Factory {
    pub fn new(name: &str) -> Self {
        let root = Ca::root(&format!("{name} Root CA"));
        let issuing = root.below(ca_params(&format!("{name} Issuing CA 1")));
        Self { root, issuing }
    }

    /// A device's leaf certificate alone, as some phones send it.
    pub fn device(&self, mac: &str) -> Identity {
        self.issuing.issue(&device_params(mac))
    }

    /// The PEM bundle of both CAs.
    pub fn bundle(&self) -> String {
        self.root.pem() + &self.issuing.pem()
    }
}

impl Identity {
    /// Reads PEM files; both may be the same.
    pub fn read(chain: &Path, key: &Path) -> Self {
        let chain = CertificateDer::pem_file_iter(chain).unwrap().collect::<Result<_, _>>().unwrap();
        Self { chain, key: Arc::new(PrivateKeyDer::from_pem_file(key).unwrap()) }
    }

    pub fn key(&self) -> PrivateKeyDer<'static> {
        self.key.clone_key()
    }

    /// The same identity that sends `ca` after its own certificate.
    pub fn with(mut self, ca: &Ca) -> Self {
        self.chain.push(ca.certificate.der().clone());
        self
    }

    /// The same identity that sends `certificate` too.
    pub fn and(mut self, certificate: &CertificateDer<'static>) -> Self {
        self.chain.push(certificate.clone());
        self
    }

    pub fn of(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Self {
        Self { chain, key: Arc::new(key) }
    }

    /// A self-signed certificate of these parameters, with the key of this one.
    pub fn signed_again(&self, params: &CertificateParams) -> Self {
        let certificate = params.self_signed(&KeyPair::try_from(&*self.key).unwrap()).unwrap();
        Self { chain: vec![certificate.der().clone()], key: Arc::clone(&self.key) }
    }

    /// The same identity with one bit of its certificate's signature flipped.
    pub fn forged(mut self) -> Self {
        let mut der = self.chain[0].to_vec();
        *der.last_mut().unwrap() ^= 1;
        self.chain[0] = der.into();
        self
    }

    /// A self-signed certificate.
    pub fn self_signed(params: &CertificateParams) -> Self {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        Self {
            chain: vec![params.self_signed(&key).unwrap().der().clone()],
            key: Arc::new(PrivateKeyDer::Pkcs8(key.serialize_der().into())),
        }
    }

    /// A certificate signed with this one's key, which is no CA's.
    pub fn signs(&self, params: &CertificateParams) -> Self {
        let key = KeyPair::try_from(&*self.key).unwrap();
        let issuer = Issuer::from_ca_cert_der(&self.chain[0], key).unwrap();
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let leaf = params.signed_by(&key, &issuer).unwrap();
        Self {
            chain: vec![leaf.der().clone(), self.chain[0].clone()],
            key: Arc::new(PrivateKeyDer::Pkcs8(key.serialize_der().into())),
        }
    }

    /// Writes chain and key as PEM files `NAME.pem` and `NAME.key` into `folder`.
    pub fn write(&self, folder: &Path, name: &str) -> (PathBuf, PathBuf) {
        let (chain, key) = (folder.join(format!("{name}.pem")), folder.join(format!("{name}.key")));
        let pem: String = self.chain.iter().map(|der| pem("CERTIFICATE", der)).collect();
        std::fs::write(&chain, pem).unwrap();
        std::fs::write(&key, pem_of_key(&self.key)).unwrap();
        std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        (chain, key)
    }
}

fn pem_of_key(key: &PrivateKeyDer<'_>) -> String {
    pem("PRIVATE KEY", key.secret_der())
}

pub fn pem(label: &str, der: &[u8]) -> String {
    use base64::Engine;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<&str> = text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

/// A server certificate for `*.domain` and `domain`.
pub fn server_certificate(domain: &str, is_rsa: bool) -> Identity {
    let mut params = CertificateParams::new(vec![format!("*.{domain}"), domain.to_owned()]).unwrap();
    params.distinguished_name = named(domain);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    valid(&mut params, SystemTime::now() - DAY, SystemTime::now() + 90 * DAY);
    if is_rsa { SERVER_CA.issue_rsa(&params) } else { SERVER_CA.issue(&params) }
}
