//! The kinds of refusals: the label `reason` of `provost_refusals_total`.

macro_rules! refusal_kinds {
    ($($(#[$doc:meta])* $kind:ident = $label:literal,)+) => {
        /// The kind of a refusal. Many reasons have one kind, so that the metrics stay small.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum RefusalKind {
            $($(#[$doc])* $kind,)+
        }

        impl RefusalKind {
            /// The label in the metrics.
            #[must_use]
            pub fn label(self) -> &'static str {
                match self {
                    $(Self::$kind => $label,)+
                }
            }
        }
    };
}

refusal_kinds! {
    // Connections and handshakes.
    ConnectionLimit = "no_place",
    Evicted = "evicted",
    ShuttingDown = "stopping",
    /// A handshake or a request's header took too long.
    Timeout = "slow",
    /// Plain HTTP from outside of its networks.
    OutsideNetworks = "elsewhere",
    /// A load balancer's connection without a valid PROXY header.
    ProxyHeader = "proxy_header",
    Disconnected = "broken_off",
    /// The client ended the handshake with an alert.
    ClientAlert = "client_alert",
    UnsupportedTls = "unsupported_tls",
    UnknownServerName = "unknown_name",
    NotServed = "not_served",
    NoServerCertificate = "no_server_certificate",
    /// An invalid ClientHello or request.
    Malformed = "malformed",

    // Device certificates.
    NoCertificate = "no_certificate",
    MalformedCertificate = "malformed_certificate",
    KeySize = "key_size",
    KeyType = "key_kind",
    KeyUsage = "key_usage",
    Expired = "expired",
    NotYetValid = "not_yet_valid",
    UnknownIssuer = "unknown_issuer",
    SelfSigned = "self_signed",
    BadSignature = "bad_signature",
    SignatureAlgorithm = "signature_algorithm",
    Revoked = "revoked",
    CrlExpired = "revocations_outdated",
    BadChain = "bad_chain",

    // Phones.
    NoIdentity = "no_identity",
    /// A digest challenge. Routine: every phone with a password gets one before it authenticates.
    Challenge = "challenge",
    WrongPassword = "wrong_password",
    TooManyAttempts = "too_many_attempts",
    UnknownPhone = "unknown_phone",
    DeniedPhone = "denied_phone",
    Unpinned = "unpinned",
    TlsSettingsChanged = "tls_changed",

    // Requests.
    Misdirected = "misdirected",
    ConstituencyGone = "gone",
    Method = "method",
    OthersFile = "others_file",
    NotFound = "not_found",
    UploadName = "upload_name",
    UploadsOff = "uploads_off",
    UploadConflict = "upload_conflict",
    UploadQuota = "upload_budget",
    DiskFull = "disk_full",
    InternalError = "failed",
}
