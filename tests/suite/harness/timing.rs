//! Timeouts of tests, and time limits that hold on a machine that is overloaded or was suspended for a while.

use std::sync::{LazyLock, Mutex};
use std::time::{Duration, Instant};

/// The timeout of everything that a test waits for, on a machine that is not overloaded.
pub const TIMEOUT: Duration = Duration::from_secs(20);

/// Added to every limit on the server's own slowness. Other virtual machines on the same host take processors and disks
/// away, and no counter here shows it.
const SLACK: Duration = Duration::from_secs(3);

/// How often a thread checks that this process runs.
const TICK: Duration = Duration::from_millis(10);

/// A check that is later than this means that the process was suspended; less is load.
const SUSPENDED: Duration = Duration::from_millis(100);

/// When this process ran, and when it, or the whole machine, was suspended.
struct Liveness {
    /// The last check.
    last: Instant,
    /// From when to when it was suspended.
    suspensions: Vec<(Instant, Instant)>,
}

static LIVENESS: LazyLock<Mutex<Liveness>> = LazyLock::new(|| {
    std::thread::spawn(|| {
        loop {
            std::thread::sleep(TICK);
            let mut liveness = LIVENESS.lock().unwrap();
            let (last, now) = (liveness.last, Instant::now());
            if now - last > TICK + SUSPENDED {
                liveness.suspensions.push((last, now));
            }
            liveness.last = now;
        }
    });
    Mutex::new(Liveness { last: Instant::now(), suspensions: Vec::new() })
});

/// A stopwatch that knows when this process was suspended.
pub struct Stopwatch(Instant);

impl Stopwatch {
    pub fn start() -> Self {
        LazyLock::force(&LIVENESS);
        Self(Instant::now())
    }

    /// The wall-clock time.
    pub fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }

    /// Whether more than `time` has passed, suspensions excluded.
    pub fn is_past(&self, time: Duration) -> bool {
        let end = Instant::now();
        if end - self.0 <= time {
            return false;
        }
        loop {
            let liveness = LIVENESS.lock().unwrap();
            // After a suspension the thread that records it may wake up later than this one.
            if liveness.last > end {
                let within =
                    |(from, to): &(Instant, Instant)| (*to).min(end).saturating_duration_since((*from).max(self.0));
                return end - self.0 > time + liveness.suspensions.iter().map(within).sum::<Duration>();
            }
            drop(liveness);
            std::thread::sleep(TICK);
        }
    }

    /// Whether everything that a test waits for should have happened. On an overloaded machine the limit grows with the
    /// number of waiting processes.
    pub fn is_over(&self) -> bool {
        self.is_past(TIMEOUT) && self.is_past(scaled_timeout())
    }

    /// Fails the test if `what` took longer than `time` and some slack, suspensions excluded. On an overloaded machine the
    /// limit grows with the number of waiting processes.
    #[track_caller]
    pub fn at_most(&self, time: Duration, what: &str) {
        let took = self.elapsed();
        let allowed = time.mul_f64(crowding()) + SLACK;
        assert!(!self.is_past(allowed), "{what} took {took:?}, {allowed:?} allowed");
    }
}

/// Repeats `probe` until it returns a value; fails the test, naming `what`, after the timeout.
#[track_caller]
pub fn eventually<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let watch = Stopwatch::start();
    loop {
        let is_over = watch.is_over();
        if let Some(found) = probe() {
            return found;
        }
        assert!(!is_over, "timeout after {:?} waiting for {what}", watch.elapsed());
        // Leaves the processor to the other process; the loop's end does not depend on this time.
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Repeats `probe` until it returns a value, and fails the test if that took much more than the second that a change may
/// take to apply (see [`Stopwatch::at_most`]). The limit is shorter than the ten seconds after which the server scans anyway.
/// Returns the time too.
#[track_caller]
pub fn within_a_second<T>(what: &str, probe: impl FnMut() -> Option<T>) -> (T, Duration) {
    let watch = Stopwatch::start();
    let found = eventually(what, probe);
    let took = watch.elapsed();
    watch.at_most(Duration::from_secs(1), what);
    (found, took)
}

/// The timeout of everything that a test waits for, on the machine as it is now.
pub fn scaled_timeout() -> Duration {
    TIMEOUT.mul_f64(crowding())
}

/// How many processes there are per processor, at least 1: the factor for time limits.
fn crowding() -> f64 {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    // The average of a minute, and the current count, because the average does not show recent load yet.
    let (minute, now) = (load.split(' ').next(), load.split([' ', '/']).nth(3));
    let most = [minute, now].into_iter().flatten().filter_map(|load| load.parse::<f64>().ok()).fold(1.0, f64::max);
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    (most / f64::from(u32::try_from(processors).unwrap())).max(1.0)
}
