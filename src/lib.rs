//! provost puts Polycom phone provisioning on the public internet: one binary, mutual TLS, a folder per constituency.
//!
//! # The way of a request
//! A phone connects. [`serve::listener`] gives the connection a place; [`serve::handshake`] reads the ClientHello, finds
//! the [constituency] that its SNI names in the [site](serve::site), and runs TLS by that constituency's own
//! configuration, in which [`trust`] judges the device certificate. A phone whose TLS is too old for that goes, where its
//! constituency wants such phones, to [`serve::old_tls`], and from there on the same way. Each request on the connection is then decided by
//! one pure function, [`serve::decision::decide`], from the policy as it is at that moment; what it grants opens a file
//! ([`serve::content`]) or stores an upload ([`serve::upload`]). [`serve::access`] writes a line, and the [ledger] remembers
//! what the phone did.
//!
//! # The way of a change
//! Somebody makes a folder or edits a policy. [`constituency::watch`] notices, [`constituency::scan`] reads what changed
//! into a new [registry](constituency::Registry), and [`app`] publishes the site that it makes, whole. The next
//! request sees it, on open connections too.
//!
//! # The way of a certificate
//! [`renew`] keeps a timetable. When a certificate is due it places an order, publishes the challenge through [`dns`], waits
//! until every authority has it, stores what it gets, and publishes it in [`certificate`]: the next handshake shows it.
//!
//! # The way to the operator
//! What the access log tells goes into the [ledger] and the [metrics] too. [`app`] gathers them with policies and
//! certificates into one [picture](status::picture), and [`status`] serves it: as a page, as JSON, to Prometheus.
//!
//! # Glossary
//! - *Constituency*: whoever is served from one folder, under one name: a firmware line, a customer, a household.
//! - *Device certificate*: the one that the factory put into a phone. Its CN is the phone's MAC address.
//! - *Known phone*: one that a constituency's policy names, or that has a `<mac>.cfg` in its folder.
//! - *Grant*, *Denial*: what the decision about a request comes to.
//! - *Pin*: a certificate that counts for one phone by itself, whoever signed it.
//! - *Family*: the form in which a vendor's device certificates carry the MAC address.
//! - *Claim*: what a certificate that does not count, or a wrong password, says whose it is. It is shown, and proves nothing.
//! - *Old lane*: TLS that rustls does not speak, spoken by OpenSSL for the constituencies that ask for it.
//! - *Lineage*: a certificate over all its renewals: the wildcard's of one kind of key, or a constituency's exact names.
//! - *TLS part*: the part of a policy that a handshake depends on; a change of it ends what was before.
//!
//! # The modules, in reading order
//! Nouns know things: [`constituency`], [`trust`], [`certificate`], [`ca`], [`digest`], [`dns`], [`ledger`], [`metrics`],
//! [`state`], [`settings`], [`files`], [`clock`], [`wording`].
//! Verbs do things: [`serve`], [`renew`], [`phone`], [`status`]. [`config`] gathers their settings, [`app`] wires them, [`cli`] is the commands.
//! Imports point from the later to the earlier; a test holds them to it.

pub mod app;
pub mod ca;
pub mod certificate;
pub mod cli;
pub mod clock;
pub mod config;
pub mod constituency;
pub mod digest;
pub mod dns;
pub mod files;
pub mod phone_history;
pub mod metrics;
pub mod virtual_phone;
pub mod phone_config;
pub mod acme;
pub mod serve;
pub mod settings;
pub mod state;
pub mod admin;
pub mod trust;
pub mod wording;
