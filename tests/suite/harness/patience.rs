//! How long tests wait, and how they judge time on a machine that may be crowded, or frozen for a while and thawed.

use std::sync::{LazyLock, Mutex};
use std::time::{Duration, Instant};

/// How long anything may take that a test waits for.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// How often it is looked whether this process runs at all.
const TICK: Duration = Duration::from_millis(10);

/// How much later than that is no standstill yet, but a crowd.
const LATE: Duration = Duration::from_millis(100);

/// What was seen of this process, or the whole machine.
struct Sightings {
    /// When it was last seen to run.
    last: Instant,
    /// From when to when it stood still.
    standstills: Vec<(Instant, Instant)>,
}

static SIGHTINGS: LazyLock<Mutex<Sightings>> = LazyLock::new(|| {
    std::thread::spawn(|| {
        loop {
            std::thread::sleep(TICK);
            let mut sightings = SIGHTINGS.lock().unwrap();
            let (last, now) = (sightings.last, Instant::now());
            if now - last > TICK + LATE {
                sightings.standstills.push((last, now));
            }
            sightings.last = now;
        }
    });
    Mutex::new(Sightings { last: Instant::now(), standstills: Vec::new() })
});

/// A stopwatch that knows when this machine stood still.
pub struct Watch(Instant);

impl Watch {
    pub fn start() -> Self {
        LazyLock::force(&SIGHTINGS);
        Self(Instant::now())
    }

    /// What a clock on the wall says.
    pub fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }

    /// Whether more than `time` has gone by in which the machine ran.
    pub fn is_past(&self, time: Duration) -> bool {
        let end = Instant::now();
        if end - self.0 <= time {
            return false;
        }
        loop {
            let sightings = SIGHTINGS.lock().unwrap();
            // Whoever notes standstills is perhaps just waking up as well.
            if sightings.last > end {
                let within =
                    |(from, to): &(Instant, Instant)| (*to).min(end).saturating_duration_since((*from).max(self.0));
                return end - self.0 > time + sightings.standstills.iter().map(within).sum::<Duration>();
            }
            drop(sightings);
            std::thread::sleep(TICK);
        }
    }

    /// Fails the test if `what` took longer than `time`: more is allowed only where more work is waiting than the machine
    /// has processors for, and what it stood still does not count.
    #[track_caller]
    pub fn at_most(&self, time: Duration, what: &str) {
        let took = self.elapsed();
        let allowed = time.mul_f64(crowding());
        assert!(!self.is_past(allowed), "{what} took {took:?}, {allowed:?} allowed");
    }
}

/// Waits until `probe` gives something; fails the test, saying `what` was waited for, when that takes too long.
#[track_caller]
pub fn eventually<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let watch = Watch::start();
    loop {
        let is_over = watch.is_past(PATIENCE);
        if let Some(found) = probe() {
            return found;
        }
        assert!(!is_over, "waited {PATIENCE:?} in vain for {what}");
        // Not to wait for something by time, only to leave the processor to whom we wait for.
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until `probe` gives something, from the change on that was just made, and fails the test unless that was so
/// within the second that a change may take. Gives the time it took, too.
#[track_caller]
pub fn within_a_second<T>(what: &str, probe: impl FnMut() -> Option<T>) -> (T, Duration) {
    let watch = Watch::start();
    let found = eventually(what, probe);
    let took = watch.elapsed();
    watch.at_most(Duration::from_secs(1), what);
    (found, took)
}

/// How many processes want each processor, at least 1: by how much a limit on our own slowness must be stretched.
fn crowding() -> f64 {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    // Over the last minute, and at this moment: what has just begun weighs nothing yet in the one.
    let (minute, now) = (load.split(' ').next(), load.split([' ', '/']).nth(3));
    let most = [minute, now].into_iter().flatten().filter_map(|load| load.parse::<f64>().ok()).fold(1.0, f64::max);
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    (most / f64::from(u32::try_from(processors).unwrap())).max(1.0)
}
