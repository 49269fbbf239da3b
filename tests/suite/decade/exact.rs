//! Certificates for exact names on the virtual clock: none delays the wildcard certificate or another exact name.

use std::sync::Arc;

use provost::acme::ports::Env;
use provost::acme::{AcmeFailure, FailureKind, Retry};
use provost::certificate::ExactNames;
use provost::constituency::ConstituencyName;

use super::outages::{DAY, HOUR};
use super::rules::{Simulated, on_virtual_time};

const CA: &str = "https://first.example";

/// The exact names of constituencies with these labels.
fn wanted(names: &[&str]) -> Arc<ExactNames> {
    let wants = |name: &&str| (name.parse().unwrap(), vec![format!("{name}.phones.example.com")]);
    Arc::new(names.iter().map(wants).collect())
}

impl Simulated {
    fn want(&self, names: &[&str]) {
        self.wanted.send_replace(wanted(names));
    }

    fn shows(&self, name: &str) -> bool {
        let exact = self.live.exact();
        let shown = exact.get(&name.parse::<ConstituencyName>().unwrap());
        shown.is_some_and(|shown| shown.iter().any(|it| it.names == [format!("{name}.phones.example.com")]))
    }

    /// How many orders were for this name, and the position of the first among all orders.
    fn orders(&self, name: &str) -> (usize, Option<usize>) {
        let ordered = self.cas[0].ordered.lock().unwrap();
        let is_for = |names: &&Vec<String>| names.contains(&format!("{name}.phones.example.com"));
        (ordered.iter().filter(is_for).count(), ordered.iter().position(|names| is_for(&names)))
    }

    fn wildcards_ordered(&self) -> usize {
        self.cas[0].ordered.lock().unwrap().iter().filter(|names| names[0].starts_with("*.")).count()
    }
}

#[test]
fn wildcard_is_ordered_first_and_exact_names_over_days() {
    on_virtual_time(async {
        let site = Simulated::new(&[CA]);
        let names: Vec<String> = (10..50).map(|number| format!("c{number}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        site.want(&names);
        let status = site.live_for(2 * HOUR).await;
        assert!(site.cas[0].ordered.lock().unwrap()[0][0].starts_with("*."), "the wildcard is ordered first");
        assert_eq!(status.certificates.len(), 1 + names.len());
        let shown = || names.iter().filter(|name| site.shows(name)).count();
        assert_eq!(shown(), 20, "the burst of the limit");
        // A certificate that waits for the budget has not failed.
        assert!(status.certificates.iter().all(|certificate| certificate.failures == 0), "{status:?}");
        site.live_for(7 * DAY - 2 * HOUR).await;
        // Let's Encrypt allows 50 per registered domain and week.
        assert_eq!(shown(), names.len());
        assert!(site.cas[0].ordered.lock().unwrap().len() <= 50);
    });
}

#[test]
fn queued_exact_names_do_not_delay_the_wildcard_renewal() {
    on_virtual_time(async {
        let site = Simulated::new(&[CA]);
        site.live_for(HOUR).await;
        let due_by = site.not_after() - 30 * DAY - site.world.now();
        site.live_for(due_by - 5 * DAY - HOUR).await;
        let before = site.wildcards_ordered();
        let names: Vec<String> = (100..400).map(|number| format!("c{number}")).collect();
        site.want(&names.iter().map(String::as_str).collect::<Vec<_>>());
        site.live_for(6 * DAY).await;
        assert_eq!(site.wildcards_ordered(), before + 1);
        let shown = names.iter().filter(|name| site.shows(name)).count();
        assert!((40..300).contains(&shown), "{shown} of those in the queue were served meanwhile");
    });
}

#[test]
fn failing_exact_name_delays_no_other_certificate() {
    on_virtual_time(async {
        let site = Simulated::new(&[CA]);
        let refusal = AcmeFailure::action_required("no such name").with_kind(FailureKind::Refused);
        *site.cas[0].refused_name.lock().unwrap() = Some(("a.phones.example.com".to_owned(), refusal));
        site.want(&["a", "b", "c"]);
        let status = site.live_for(HOUR).await;
        assert!(site.shows("b") && site.shows("c") && !site.shows("a"));
        let of = |name: &str| {
            let is_it = |it: &&provost::acme::CertificateStatus| it.lineage().to_string() == name;
            status.certificates.iter().find(is_it).unwrap().clone()
        };
        let failed = of("exact/a");
        assert!(failed.failures > 1 && failed.action_required && failed.held.is_none(), "{failed:?}");
        assert_eq!(failed.names, ["a.phones.example.com"]);
        assert!(failed.next_attempt - status.now <= 2 * HOUR);
        assert_eq!((of("exact/b").failures, of("ecdsa-p256").failures), (0, 0));
        // After the repair it is obtained: the attempts never stop.
        *site.cas[0].refused_name.lock().unwrap() = None;
        site.live_for(2 * DAY).await;
        assert!(site.shows("a"));
    });
}

#[test]
fn rate_limit_on_one_exact_name_delays_no_other() {
    on_virtual_time(async {
        let site = Simulated::new(&[CA]);
        let limited = AcmeFailure::retry("too many certificates for example.com").with_kind(FailureKind::RateLimited);
        let limited = AcmeFailure { retry: Retry::After(3 * DAY), ..limited };
        *site.cas[0].refused_name.lock().unwrap() = Some(("a.phones.example.com".to_owned(), limited));
        site.want(&["a"]);
        let status = site.live_for(HOUR).await;
        assert_eq!(site.live.current().len(), 1);
        assert!(status.certificates[1].next_attempt - status.now > 2 * DAY, "{status:?}");
        site.want(&["a", "b"]);
        site.live_for(HOUR).await;
        assert!(site.shows("b"));
        *site.cas[0].refused_name.lock().unwrap() = None;
        site.live_for(2 * DAY).await;
        assert!(!site.shows("a"), "its Retry-After is obeyed");
        site.live_for(2 * DAY).await;
        assert!(site.shows("a"));
    });
}

#[test]
fn unwanted_exact_certificate_is_kept_until_expiry() {
    on_virtual_time(async {
        let site = Simulated::new(&[CA]);
        let folder = site.folder.path().join("certs/exact/a");
        for _ in 0..50 {
            site.want(&["a"]);
            site.live_for(HOUR).await;
            assert!(site.shows("a"));
            site.want(&[]);
            let status = site.live_for(HOUR).await;
            assert!(!site.shows("a") && folder.join("current/chain.pem").exists());
            assert_eq!(status.certificates.len(), 1);
        }
        assert_eq!(site.orders("a").0, 1);
        site.live_for(80 * DAY).await;
        assert_eq!((site.orders("a").0, folder.exists()), (1, true), "kept while it is valid");
        site.live_for(12 * DAY).await;
        assert_eq!((site.orders("a").0, folder.exists()), (1, false));
        let memory = std::fs::read_to_string(site.folder.path().join("renewal.json")).unwrap();
        assert!(!memory.contains("exact/a") && !memory.contains("a.phones"), "{memory}");
    });
}

#[test]
fn exact_certificate_is_renewed_early_and_for_a_new_alias() {
    on_virtual_time(async {
        let site = Simulated::new(&[CA]);
        site.want(&["a"]);
        site.live_for(HOUR).await;
        let not_after = || site.live.exact().values().next().unwrap()[0].not_after;
        let first = not_after();
        site.live_for(first - 20 * DAY - site.world.now()).await;
        assert!(site.shows("a") && not_after() > first && site.orders("a").0 == 2);
        let both = vec!["a.phones.example.com".to_owned(), "old.phones.example.com".to_owned()];
        let wanted: ExactNames = [("a".parse().unwrap(), both.clone())].into_iter().collect();
        site.wanted.send_replace(Arc::new(wanted));
        site.live_for(HOUR).await;
        assert_eq!(site.live.exact().values().next().unwrap()[0].names, both);
        // A name less causes no new order.
        site.want(&["a"]);
        site.live_for(HOUR).await;
        assert_eq!(site.orders("a").0, 3);
    });
}
