//! Permits, and which connection is evicted.

use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::task::JoinSet;

use super::eviction::EVICTION_GRACE;
use super::*;

fn limits(limits: Limits) -> Arc<ConnectionLimits> {
    Arc::new(ConnectionLimits::new(limits, 12))
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn client(text: &str) -> ConnectionSource {
    ConnectionSource::Client(address(text))
}

/// A permit that is available at once.
fn enter(limits: &Arc<ConnectionLimits>, from: &str) -> ConnectionPermit {
    match limits.try_enter(client(from), clock::monotonic()) {
        LimitEntry::Admitted(permit) => permit,
        LimitEntry::Refused(full) | LimitEntry::Paused(full) => panic!("{full}"),
        LimitEntry::Evicting(_) | LimitEntry::Waiting(_) => panic!("evicts"),
    }
}

/// The permit of a connection whose ClientHello is complete.
fn enter_with_hello(limits: &Arc<ConnectionLimits>, from: &str) -> ConnectionPermit {
    let mut permit = enter(limits, from);
    permit.note_hello().unwrap();
    permit
}

/// The permit of a connection that waits for its ClientHello.
fn enter_idle(limits: &Arc<ConnectionLimits>, from: &str) -> ConnectionPermit {
    let mut permit = enter(limits, from);
    assert!(evicted(&mut permit).is_none());
    permit
}

/// A connection that waits for its permit.
fn newcomer(
    limits: &Arc<ConnectionLimits>,
    paused: impl FnMut(&LimitReached) + Send + 'static,
) -> JoinSet<Result<ConnectionPermit, LimitReached>> {
    let (limits, mut waiting) = (Arc::clone(limits), JoinSet::new());
    waiting.spawn(async move { limits.enter(client("192.0.2.2"), paused).await });
    waiting
}

/// Why the connection was evicted, if it was. The first call makes it a candidate.
fn evicted(permit: &mut ConnectionPermit) -> Option<String> {
    match pin!(permit.evicted()).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(eviction) => Some(eviction.to_string()),
        Poll::Pending => None,
    }
}

/// Why there is no permit at once, nor by eviction.
fn full(limits: &Arc<ConnectionLimits>, from: &str) -> LimitReached {
    match limits.try_enter(client(from), clock::monotonic() + EVICTION_GRACE) {
        LimitEntry::Refused(full) | LimitEntry::Paused(full) => full,
        LimitEntry::Admitted(_) => panic!("admitted"),
        LimitEntry::Waiting(_) | LimitEntry::Evicting(_) => panic!("evicts"),
    }
}

#[test]
fn unauthenticated_clients_leave_permits_for_phones() {
    let limits = limits(Limits { unfinished_handshakes: 2, connections: 1, ..Limits::default() });
    let mut phone = enter_with_hello(&limits, "192.0.2.1");
    let _stranger = enter_with_hello(&limits, "192.0.2.2");
    assert!(full(&limits, "192.0.2.3").to_string().contains("limits.unfinished_handshakes"));
    phone.set_kind(ConnectionKind::Proven, None).unwrap();
    let mut second = enter(&limits, "192.0.2.3");
    assert!(second.set_kind(ConnectionKind::Proven, None).unwrap_err().to_string().contains("limits.connections"));
    drop(phone);
    second.set_kind(ConnectionKind::Proven, None).unwrap();
    assert_eq!((limits.count(ConnectionKind::Proven), limits.count(ConnectionKind::Unfinished)), (1, 1));
}

#[test]
fn connections_are_limited_by_the_open_files() {
    let limits = limits(Limits { connections_per_address: 0, ..Limits::default() });
    let enter = || enter_with_hello(&limits, "192.0.2.1");
    let mut permits: Vec<ConnectionPermit> = (0..9).map(|_| enter()).collect();
    let reason = full(&limits, "192.0.2.1").to_string();
    assert!(reason.starts_with("all 9 permits for unfinished handshakes that"), "{reason}");
    for permit in permits.iter_mut().take(3) {
        permit.set_kind(ConnectionKind::Anonymous, None).unwrap();
        permit.note_request();
    }
    // What anonymous connections take, handshakes cannot.
    let reason = full(&limits, "192.0.2.1").to_string();
    assert!(reason.starts_with("all 6 permits for unfinished handshakes that"), "{reason}");
    let refused = permits[3].set_kind(ConnectionKind::Anonymous, None);
    assert_eq!(refused, Err(LimitReached::Share { kind: "anonymous connections", allowed: 3 }));
    // Known phones get the permits that anonymous connections cannot have.
    for permit in &mut permits[3..] {
        permit.set_kind(ConnectionKind::Proven, None).unwrap();
    }
    while permits.len() < 12 {
        let mut phone = enter();
        phone.set_kind(ConnectionKind::Proven, None).unwrap();
        permits.push(phone);
    }
    assert_eq!(full(&limits, "192.0.2.1"), LimitReached::Files { room: 12 });
    permits.pop();
    drop(enter());
    drop(permits);
    assert_eq!(limits.state.lock().taken, [0; 3]);
}

#[test]
fn address_limit_counts_and_releases() {
    let limits = limits(Limits { connections_per_address: 1, ..Limits::default() });
    let one = enter_with_hello(&limits, "2001:db8::1");
    assert!(matches!(full(&limits, "2001:db8::2"), LimitReached::Address { .. }));
    drop(enter(&limits, "2001:db8:0:1::1"));
    drop(one);
    drop(enter(&limits, "2001:db8::2"));
    assert!(limits.state.lock().by_address.0.is_empty());
    assert_eq!(limits.count(ConnectionKind::Unfinished), 0);
}

#[test]
fn phone_limit_counts_per_constituency_and_releases() {
    let limits = limits(Limits { connections_per_phone: 1, ..Limits::default() });
    let enter_phone = |constituency: &str| {
        let mut permit = enter(&limits, "192.0.2.1");
        let phone = (constituency.parse().unwrap(), "00005e00530c".parse().unwrap());
        permit.set_kind(ConnectionKind::Anonymous, Some(phone)).map(|()| permit)
    };
    let one = enter_phone("ote").unwrap();
    assert!(matches!(enter_phone("ote"), Err(LimitReached::Phone { allowed: 1, .. })));
    let other = enter_phone("other").unwrap();
    drop(one);
    drop(enter_phone("ote").unwrap());
    drop(other);
    assert!(limits.state.lock().by_phone.0.is_empty());
    assert_eq!(limits.count(ConnectionKind::Unfinished), 0);
}

#[test]
fn unfinished_handshakes_of_zero_is_rejected() {
    let error = Limits { unfinished_handshakes: 0, ..Limits::default() }.check().unwrap_err();
    assert!(error.contains("unfinished_handshakes is 0"), "{error}");
}

/// The names of the first `count` connections that are evicted, in this order.
fn victims(candidates: &mut Candidates<&'static str>, now: Instant, count: usize) -> Vec<&'static str> {
    (0..count).filter_map(|_| Some(candidates.evict(now, true)?.notice)).collect()
}

/// Candidates with these names and addresses, in the order in which they were accepted at `now`.
fn candidates(connections: &[(&'static str, &str)], now: Instant) -> Candidates<&'static str> {
    let mut candidates = Candidates::default();
    for (id, (name, from)) in (1..).zip(connections) {
        candidates.add(id, Prefix::of(address(from)), *name, now);
    }
    candidates
}

#[test]
fn heaviest_prefix_loses_its_oldest_connection() {
    let now = clock::monotonic();
    let idle = [
        ("a1", "192.0.2.1"),
        ("b1", "192.0.2.2"),
        ("b2", "192.0.2.2"),
        ("c1", "192.0.2.3"),
        ("b3", "::ffff:192.0.2.2"),
        ("a2", "192.0.2.1"),
    ];
    let mut candidates = candidates(&idle, now);
    // Among prefixes of the same weight, the one with the oldest connection comes first.
    assert_eq!(victims(&mut candidates, now + EVICTION_GRACE, 9), ["b1", "a1", "b2", "c1", "b3", "a2"]);
}

#[test]
fn ipv6_is_summed_per_48_and_then_per_64() {
    let now = clock::monotonic();
    let idle = [
        ("phone", "2001:db8:1:1::1"),
        ("v4", "192.0.2.1"),
        ("v4", "192.0.2.1"),
        ("x1", "2001:db8:1:2::1"),
        ("x2", "2001:db8:1:2::2"),
        ("y1", "2001:db8:2:1::1"),
        ("y2", "2001:db8:2:2::1"),
        ("y3", "2001:db8:2:3::1"),
        ("y4", "2001:db8:2:4::1"),
    ];
    let mut candidates = candidates(&idle, now);
    let evicted = victims(&mut candidates, now + EVICTION_GRACE, 9);
    // No /64 of the second /48 has more than one; all of them together have four.
    assert_eq!(evicted[..3], ["y1", "x1", "y2"]);
    assert_eq!(evicted.len(), 9);
    let first = evicted.iter().position(|name| *name == "phone");
    assert!(first > evicted.iter().position(|name| *name == "x1"), "{evicted:?}");
}

#[test]
fn prefix_of_a_proven_phone_is_evicted_last_for_a_day() {
    const DAY: Duration = Duration::from_hours(24);
    let now = clock::monotonic();
    let idle = [("nat", "192.0.2.1"), ("nat", "192.0.2.1"), ("idle", "192.0.2.2"), ("idle", "192.0.2.3")];
    for before in [false, true] {
        let mut candidates = candidates(if before { &[] } else { &idle }, now);
        candidates.note_proven(Prefix::of(address("192.0.2.1")), now);
        for (id, (name, from)) in (1..).zip(idle).filter(|_| before) {
            candidates.add(id, Prefix::of(address(from)), name, now);
        }
        assert_eq!(victims(&mut candidates, now + EVICTION_GRACE, 9), ["idle", "idle", "nat", "nat"], "{before}");
        let later = now + DAY + Duration::from_secs(1);
        for (id, (name, from)) in (10..).zip(idle) {
            candidates.add(id, Prefix::of(address(from)), name, later);
        }
        assert_eq!(victims(&mut candidates, later + EVICTION_GRACE, 9), ["nat", "nat", "idle", "idle"], "{before}");
    }
    // Authentication counts for the /64, not for the whole /48.
    let mut candidates = candidates(&[("phone", "2001:db8:1:1::1"), ("idle", "2001:db8:1:2::1")], now);
    candidates.note_proven(Prefix::of(address("2001:db8:1:1::2")), now);
    assert_eq!(victims(&mut candidates, now + EVICTION_GRACE, 9), ["idle", "phone"]);
}

#[test]
fn grace_period_protects_young_connections_under_load() {
    let start = clock::monotonic();
    let now = start + EVICTION_GRACE;
    let with_young = || {
        let mut candidates = candidates(&[("old", "192.0.2.1")], start);
        (2..100).for_each(|id| candidates.add(id, Prefix::of(address("192.0.2.2")), "young", now));
        candidates
    };
    let mut candidates = with_young();
    assert_eq!(victims(&mut candidates, now, 9), ["old"]);
    assert_eq!(candidates.next_eligible(), Some(now + EVICTION_GRACE));
    assert_eq!(victims(&mut candidates, now + EVICTION_GRACE, 99).len(), 98);
    assert_eq!(candidates.next_eligible(), None);
    // Without the grace period, weight decides, and age only among prefixes of the same weight.
    let mut candidates = with_young();
    let first: Vec<_> = (0..99).filter_map(|_| Some(candidates.evict(now, false)?.notice)).collect();
    assert_eq!((first[0], first[97], first[98]), ("young", "old", "young"));
}

#[test]
fn removed_candidates_use_no_memory() {
    let start = clock::monotonic();
    let mut candidates = Candidates::default();
    for id in 0..10_000_u64 {
        let now = start + Duration::from_millis(id);
        candidates.add(id, Prefix::of(address("192.0.2.1")), "", now);
        assert!(candidates.remove(id) && !candidates.remove(id));
    }
    assert!(candidates.is_empty(), "{candidates:?}");
}

#[test]
fn evicting_from_60_000_candidates_is_fast() {
    let now = clock::monotonic();
    let mut candidates = Candidates::default();
    for id in 0..60_000_u32 {
        let from = IpAddr::from([10, 0, (id % 6000 / 250) as u8, (id % 250) as u8]);
        candidates.add(u64::from(id), Prefix::of(from), "", now);
    }
    // A search through all candidates for each eviction would take 3,600,000,000 steps.
    assert_eq!(victims(&mut candidates, now + EVICTION_GRACE, 60_001).len(), 60_000);
    assert!(candidates.is_empty());
}

#[tokio::test]
async fn evicted_connection_closes_before_the_next_enters() {
    let limits = limits(Limits { unfinished_handshakes: 2, ..Limits::default() });
    let mut idle = [enter_idle(&limits, "192.0.2.1"), enter_idle(&limits, "192.0.2.1")];
    let mut newcomer = newcomer(&limits, |_| panic!("paused"));
    assert_eq!(
        idle[0].evicted().await.to_string(),
        "evicted before its ClientHello was complete: all 2 permits for unfinished handshakes are in use \
         (limits.unfinished_handshakes); 192.0.2.1/32 has the most connections without one (2)"
    );
    tokio::task::yield_now().await;
    assert!(newcomer.try_join_next().is_none());
    let [first, _second] = idle;
    drop(first);
    let _permit = newcomer.join_next().await.unwrap().unwrap().unwrap();
    assert_eq!(limits.count(ConnectionKind::Unfinished), 2);
}

#[tokio::test]
async fn handshake_after_its_hello_is_never_evicted() {
    let limits = limits(Limits { unfinished_handshakes: 2, ..Limits::default() });
    let [first, mut second] = [(); 2].map(|()| enter_with_hello(&limits, "192.0.2.1"));
    let (sender, paused) = oneshot::channel();
    let mut sender = Some(sender);
    let mut newcomer = newcomer(&limits, move |full| _ = sender.take().map(|it| it.send(full.to_string())));
    assert!(paused.await.unwrap().contains("limits.unfinished_handshakes"));
    // A finished handshake also releases its place among the unfinished ones.
    second.set_kind(ConnectionKind::Proven, None).unwrap();
    let third = newcomer.join_next().await.unwrap().unwrap().unwrap();
    drop((first, third));
    assert_eq!((limits.count(ConnectionKind::Unfinished), limits.count(ConnectionKind::Proven)), (0, 1));
}

#[tokio::test]
async fn unread_connection_delays_eviction() {
    let limits = limits(Limits { unfinished_handshakes: 2, ..Limits::default() });
    let [mut first, mut second] = [(); 2].map(|()| enter(&limits, "192.0.2.1"));
    let mut newcomer = newcomer(&limits, |_| panic!("paused"));
    tokio::task::yield_now().await;
    // The ClientHello of the first has arrived, and that of the second has not.
    first.note_hello().unwrap();
    tokio::task::yield_now().await;
    assert!(newcomer.try_join_next().is_none());
    assert!(second.evicted().await.to_string().contains("192.0.2.1/32"));
    drop(second);
    newcomer.join_next().await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn unlimited_connection_read_last_does_not_stop_accepting() {
    let unlimited_networks = vec!["203.0.113.0/24".parse().unwrap()];
    let limits = limits(Limits { unfinished_handshakes: 2, unlimited_networks, ..Limits::default() });
    let mut idle = enter_idle(&limits, "192.0.2.1");
    let mut unlimited = enter(&limits, "203.0.113.1");
    let mut newcomer = newcomer(&limits, |_| panic!("paused"));
    tokio::task::yield_now().await;
    assert!(evicted(&mut unlimited).is_none());
    assert!(idle.evicted().await.to_string().contains("192.0.2.1/32"));
    drop(idle);
    newcomer.join_next().await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn hello_during_eviction_does_not_keep_the_permit() {
    let limits = limits(Limits { unfinished_handshakes: 1, ..Limits::default() });
    let mut idle = enter_idle(&limits, "192.0.2.1");
    let LimitEntry::Evicting(gone) = limits.try_enter(client("192.0.2.2"), clock::monotonic()) else {
        panic!("not evicted")
    };
    idle.note_hello().unwrap_err();
    drop(idle);
    gone.await.unwrap_err();
    drop(enter(&limits, "192.0.2.2"));
}

#[test]
fn idle_connections_have_a_grace_period_under_load() {
    let limits = limits(Limits { unfinished_handshakes: 3, ..Limits::default() });
    let handshakes = [(); 2].map(|()| enter_with_hello(&limits, "192.0.2.1"));
    let mut idle = enter_idle(&limits, "192.0.2.2");
    let now = clock::monotonic();
    let LimitEntry::Waiting(Some(grown)) = limits.try_enter(client("192.0.2.3"), now) else { panic!("no grace") };
    assert!(grown <= now + EVICTION_GRACE);
    assert!(matches!(limits.try_enter(client("192.0.2.3"), grown), LimitEntry::Evicting(_)));
    assert!(evicted(&mut idle).is_some());
    drop(handshakes);
}

#[test]
fn lingering_refused_client_is_evicted_at_once() {
    let limits = limits(Limits { unfinished_handshakes: 3, ..Limits::default() });
    let mut refused = [(); 3].map(|()| enter_with_hello(&limits, "192.0.2.1"));
    let now = clock::monotonic();
    assert!(matches!(limits.try_enter(client("192.0.2.2"), now), LimitEntry::Paused(_)));
    assert!(evicted(&mut refused[0]).is_none());
    assert!(matches!(limits.try_enter(client("192.0.2.2"), now), LimitEntry::Evicting(_)));
    assert!(evicted(&mut refused[0]).is_some());
}

#[test]
fn idle_client_is_evicted_for_one_at_its_address() {
    let limits = limits(Limits { connections_per_address: 2, ..Limits::default() });
    let mut idle = [enter_idle(&limits, "192.0.2.1"), enter_idle(&limits, "192.0.2.1")];
    let now = clock::monotonic() + EVICTION_GRACE;
    assert!(matches!(limits.try_enter(client("192.0.2.1"), now), LimitEntry::Evicting(_)));
    let [oldest, second] = idle.each_mut().map(evicted);
    assert!(oldest.is_some_and(|reason| reason.contains("limits.connections_per_address")));
    assert_eq!(second, None);
}

/// An anonymous connection that has sent no request.
fn enter_anonymous(limits: &Arc<ConnectionLimits>, from: &str) -> Result<ConnectionPermit, LimitReached> {
    let mut permit = enter_with_hello(limits, from);
    permit.set_kind(ConnectionKind::Anonymous, None).map(|()| permit)
}

#[test]
fn anonymous_connection_without_request_is_evicted() {
    let limits = limits(Limits { anonymous_connections: 3, ..Limits::default() });
    let [mut phone, mut first, mut second] =
        ["192.0.2.1", "192.0.2.2", "192.0.2.2"].map(|from| enter_anonymous(&limits, from).unwrap());
    let mut newcomer = enter_anonymous(&limits, "192.0.2.3").unwrap();
    assert_eq!(
        evicted(&mut first).as_deref(),
        Some(
            "evicted before its first request was complete: all 3 permits for anonymous connections are in use \
             (limits.anonymous_connections); 192.0.2.2/32 has the most connections without one (2)"
        )
    );
    assert_eq!([&mut phone, &mut second, &mut newcomer].map(evicted), [None, None, None]);
    drop(first);
    assert_eq!(limits.count(ConnectionKind::Anonymous), 3);
}

#[test]
fn idle_anonymous_is_evicted_after_those_without_request() {
    let limits = limits(Limits { anonymous_connections: 2, ..Limits::default() });
    let mut served = enter_anonymous(&limits, "192.0.2.1").unwrap();
    served.note_request();
    served.note_idle();
    let mut silent = enter_anonymous(&limits, "192.0.2.2").unwrap();
    let mut third = enter_anonymous(&limits, "192.0.2.3").unwrap();
    assert!(evicted(&mut silent).is_some() && evicted(&mut served).is_none());
    drop(silent);
    third.note_request();
    let mut fourth = enter_anonymous(&limits, "192.0.2.3").unwrap();
    let reason = evicted(&mut served).unwrap();
    assert!(reason.starts_with("evicted while it was idle between requests: all 2 permits for anonymous"), "{reason}");
    assert!(reason.ends_with("; 192.0.2.1/32 has the most idle connections (1)"), "{reason}");
    drop(served);
    fourth.note_request();
    enter_anonymous(&limits, "192.0.2.4").unwrap_err();
    assert_eq!([third, fourth].each_mut().map(evicted), [None, None]);
}

#[test]
fn request_during_eviction_does_not_keep_the_permit() {
    let limits = limits(Limits { anonymous_connections: 1, ..Limits::default() });
    let mut silent = enter_anonymous(&limits, "192.0.2.1").unwrap();
    let newcomer = enter_anonymous(&limits, "192.0.2.2").unwrap();
    silent.note_request();
    assert!(evicted(&mut silent).is_some());
    drop((silent, newcomer));
    assert_eq!(limits.count(ConnectionKind::Anonymous), 0);
    let state = limits.state.lock();
    assert!(state.without_request.is_empty() && state.between_requests.is_empty());
}

#[test]
fn idle_proven_phone_is_never_evicted() {
    let limits = limits(Limits { anonymous_connections: 1, ..Limits::default() });
    let mut phone = enter_anonymous(&limits, "192.0.2.1").unwrap();
    phone.note_request();
    phone.set_kind(ConnectionKind::Proven, None).unwrap();
    phone.note_idle();
    let anonymous = [(); 3].map(|()| enter_anonymous(&limits, "192.0.2.1").unwrap());
    assert!(evicted(&mut phone).is_none());
    drop(anonymous);
}

#[test]
fn anonymous_connections_are_evicted_for_handshakes() {
    let by_address = Limits { connections_per_address: 3, ..Limits::default() };
    for (limit, key) in [(by_address, "limits.connections_per_address"), (Limits::default(), "ulimit -n")] {
        let limits = limits(limit);
        let mut silent = [(); 3].map(|()| enter_anonymous(&limits, "192.0.2.1").unwrap());
        let phones: Vec<_> = (0..9)
            .map(|_| {
                let mut phone = enter(&limits, "192.0.2.2");
                phone.set_kind(ConnectionKind::Proven, None).unwrap();
                phone
            })
            .take_while(|_| key == "ulimit -n")
            .collect();
        assert!(matches!(limits.try_enter(client("192.0.2.1"), clock::monotonic()), LimitEntry::Evicting(_)), "{key}");
        assert!(evicted(&mut silent[0]).is_some_and(|reason| reason.contains(key)));
        drop(phones);
    }
}

#[test]
fn unlimited_networks_are_never_evicted() {
    let unlimited_networks = vec!["192.0.2.0/24".parse().unwrap()];
    let limits =
        limits(Limits { unfinished_handshakes: 2, anonymous_connections: 1, unlimited_networks, ..Limits::default() });
    let mut anonymous = enter_anonymous(&limits, "192.0.2.1").unwrap();
    anonymous.note_idle();
    let mut trusted = [enter_idle(&limits, "192.0.2.1"), enter_with_hello(&limits, "192.0.2.1")];
    // The second one lingers.
    assert!(evicted(&mut trusted[1]).is_none());
    assert!(evicted(&mut anonymous).is_none());
    full(&limits, "198.51.100.1");
    drop(trusted);
    enter_anonymous(&limits, "198.51.100.1").unwrap_err();
}

/// The permit of a connection from the load balancer 192.0.2.250, whose header is not read yet.
fn enter_relayed(limits: &Arc<ConnectionLimits>) -> ConnectionPermit {
    match limits.try_enter(ConnectionSource::LoadBalancer(address("192.0.2.250")), clock::monotonic()) {
        LimitEntry::Admitted(permit) => permit,
        _ => panic!("no permit"),
    }
}

#[test]
fn relayed_connection_counts_for_its_client_only() {
    let limits = limits(Limits { connections_per_address: 1, ..Limits::default() });
    // Without a header, more than one address may have.
    let mut relayed: Vec<ConnectionPermit> = (0..3).map(|_| enter_relayed(&limits)).collect();
    relayed[0].set_client(address("2001:db8::1")).unwrap();
    relayed[0].note_hello().unwrap();
    let refused = relayed[1].set_client(address("2001:db8::2")).unwrap_err();
    assert!(matches!(refused, ClientRefused::Full(LimitReached::Address { allowed: 1, .. })), "{refused}");
    relayed[1].set_client(address("192.0.2.1")).unwrap();
    // The balancer itself.
    relayed[2].set_client(address("192.0.2.250")).unwrap();
    for permit in &mut relayed {
        permit.note_hello().unwrap();
    }
    for taken in ["2001:db8::3", "192.0.2.1", "192.0.2.250"] {
        assert!(matches!(full(&limits, taken), LimitReached::Address { .. }), "{taken}");
    }
    drop(relayed);
    for free in ["2001:db8::3", "192.0.2.1", "192.0.2.250"] {
        drop(enter(&limits, free));
    }
    let state = limits.state.lock();
    assert_eq!((state.taken, state.unread), ([0; 3], 0));
}

#[test]
fn relayed_client_evicts_an_idle_connection_of_its_own_prefix() {
    let limits = limits(Limits { connections_per_address: 1, ..Limits::default() });
    let mut idle = enter_idle(&limits, "192.0.2.1");
    let mut relayed = enter_relayed(&limits);
    relayed.set_client_at(address("192.0.2.1"), clock::monotonic() + EVICTION_GRACE).unwrap();
    assert!(evicted(&mut idle).unwrap().contains("192.0.2.1/32 already has 1 connection"));
}

#[test]
fn connections_without_a_header_are_evicted_after_all_others() {
    let unlimited_networks = vec!["192.0.2.250/32".parse().unwrap()];
    let limits = limits(Limits { unfinished_handshakes: 4, unlimited_networks, ..Limits::default() });
    let mut relayed = [enter_relayed(&limits), enter_relayed(&limits)];
    let mut known = enter_relayed(&limits);
    known.set_client(address("198.51.100.1")).unwrap();
    let mut idle = enter_idle(&limits, "203.0.113.1");
    for permit in relayed.iter_mut().chain([&mut known]) {
        assert!(evicted(permit).is_none());
    }
    let later = clock::monotonic() + EVICTION_GRACE;
    let evict_one = || {
        assert!(matches!(limits.try_enter(client("203.0.113.9"), later), LimitEntry::Evicting(_)));
    };
    evict_one();
    assert!(evicted(&mut known).is_some(), "the oldest");
    evict_one();
    assert!(evicted(&mut idle).is_some());
    // Then those without a header, although their address is unlimited.
    evict_one();
    assert!(evicted(&mut relayed[0]).is_some());
    evict_one();
    // Its header comes too late.
    let late = relayed[1].set_client(address("198.51.100.2")).unwrap_err();
    assert!(matches!(late, ClientRefused::Evicted(_)), "{late}");
}

#[test]
fn unlimited_client_behind_a_balancer_is_never_evicted() {
    let unlimited_networks = vec!["198.51.100.0/24".parse().unwrap()];
    let limits = limits(Limits {
        unfinished_handshakes: 2,
        connections_per_address: 1,
        unlimited_networks,
        ..Limits::default()
    });
    let mut permits = [enter_relayed(&limits), enter_relayed(&limits)];
    for permit in &mut permits {
        permit.set_client(address("198.51.100.1")).unwrap();
        assert!(evicted(permit).is_none());
    }
    assert!(full(&limits, "203.0.113.9").to_string().contains("limits.unfinished_handshakes"));
}
