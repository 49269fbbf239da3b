//! provost puts Polycom phone provisioning on the public internet: one binary, mutual TLS, a folder per constituency.
//!
//! # A request
//! A phone connects. [`serve::listener`] takes a permit for the connection. [`serve::handshake`] reads the ClientHello,
//! finds the [constituency] that its SNI names in the [site](serve::site), and runs TLS with the configuration of that
//! constituency, in which [`identity::trust`] verifies the device certificate. Phones whose TLS is too old for rustls are
//! served by [`serve::openssl`], if the constituency's policy allows it. For each request,
//! [`serve::access_control::decide`], a pure function, grants or denies access by the policy as it is at that moment. A
//! grant opens a file ([`serve::file_lookup`]) or stores an upload ([`serve::upload`]). [`serve::access_log`] writes a line,
//! and [`phone_history`] stores what the phone did.
//!
//! # A change of a policy
//! An operator makes a folder or edits a policy. [`constituency::watch`] notices it, [`constituency::scan`] reads the change
//! into a new [registry](constituency::Registry), and [`app`] publishes a new site. The next request uses it, on open
//! connections too.
//!
//! # A certificate
//! The scheduler of [`acme`] places an order when a certificate is due, publishes the challenge through [`dns`], waits until
//! every authoritative server has it, stores the new certificate, and publishes it in [`certificate`]. The next handshake
//! presents it.
//!
//! # What the operator sees
//! The access log also feeds [`phone_history`] and the [metrics]. [`app`] joins them with policies and certificates into a
//! [snapshot](admin::snapshot), and [`admin`] serves it: as a page, as JSON, and to Prometheus.
//!
//! # Glossary
//! - *Constituency*: a group of phones with a folder, a subdomain and a policy of its own: a firmware version, a customer, a
//!   household.
//! - *Device certificate*: the certificate that the factory installed in a phone. Its CN is the phone's MAC address.
//! - *Known phone*: a phone that a constituency's policy lists, or that has a `<mac>.cfg` in its folder.
//! - *Grant*, *denial*: the result of access control for a request.
//! - *Pin*: a certificate that is accepted for one phone, whatever its issuer.
//! - *Family*: the form in which a vendor's device certificates carry the MAC address.
//! - *Claim*: the identity in an invalid certificate or a wrong password. It is shown, and proves nothing.
//! - *Legacy TLS*: TLS that rustls does not implement. OpenSSL serves it, for the constituencies that allow it. Logs call
//!   it `lane=old`.
//! - *Lineage*: a certificate over all its renewals: the wildcard with one kind of key, or a constituency's exact names.
//! - *TLS part*: the part of a policy on which a handshake depends. When it changes, sessions and connections end.
//!
//! # The modules, in reading order
//! Nouns hold knowledge: [`constituency`], [`identity`], [`certificate`], [`ca`], [`dns`], [`phone_history`],
//! [`phone_config`], [`audit`], [`metrics`], [`state`], [`settings`], [`files`], [`clock`], [`background`],
//! [`wording`].
//! Verbs act: [`serve`], [`acme`], [`virtual_phone`], [`admin`],
//! [`notify`]. [`config`] gathers their settings, [`app`] wires them, and
//! [`cli`] has the commands. Imports point from the later to the earlier; a test checks it.

pub mod acme;
pub mod admin;
pub mod app;
pub mod audit;
pub mod background;
pub mod ca;
pub mod certificate;
pub mod cli;
pub mod clock;
pub mod config;
pub mod constituency;
pub mod dns;
pub mod files;
pub mod identity;
pub mod metrics;
pub mod notify;
pub mod phone_config;
pub mod phone_history;
pub mod serve;
pub mod settings;
pub mod state;
pub mod virtual_phone;
pub mod wording;
