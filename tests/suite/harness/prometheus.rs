//! Which alerts fire in a real Prometheus.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::process::Command;

use super::tool::{provost, run};

/// For how many minutes the metrics last: longer than any alert's `for`.
const MINUTES: u32 = 180;

/// Which of the alerts that provost prints fire if `/metrics` returns `metrics` for hours; `None` if Prometheus is not
/// installed.
pub fn firing(metrics: &str) -> Option<BTreeSet<String>> {
    let folder = tempfile::tempdir().unwrap();
    let printed = provost(folder.path(), &["print", "prometheus-alerts"]);
    assert_eq!(printed.code, 0, "{printed:?}");
    let names: Vec<&str> = printed.stdout.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(names.len() >= 12, "{names:?}");
    std::fs::write(folder.path().join("alerts.yml"), &printed.stdout).unwrap();
    let mut test =
        "rule_files: [alerts.yml]\nevaluation_interval: 1m\ntests:\n- interval: 1m\n  input_series:\n".to_owned();
    for line in metrics.lines().filter(|line| line.starts_with("provost_")) {
        let (series, value) = line.rsplit_once(' ').unwrap();
        writeln!(test, "  - series: '{series}'\n    values: '{value}+0x{MINUTES}'").unwrap();
    }
    test.push_str("  promql_expr_test:\n");
    for name in &names {
        let expr = format!("count(ALERTS{{alertname=\"{name}\",alertstate=\"firing\"}})");
        writeln!(test, "  - expr: '{expr}'\n    eval_time: {MINUTES}m\n    exp_samples: []").unwrap();
    }
    std::fs::write(folder.path().join("test.yml"), test).unwrap();
    let mut promtool = Command::new("promtool");
    promtool.args(["test", "rules", "test.yml"]).current_dir(folder.path());
    if promtool.output().is_err() {
        return None;
    }
    // The test expects that no alert fires; each that does is named in an error.
    let ended = run(&mut promtool);
    let said = ended.stdout + &ended.stderr;
    assert!(said.contains("SUCCESS") || said.contains("FAILED"), "{said}");
    assert!(!said.contains("error parsing") && !said.contains("err:"), "{said}");
    let fires = |name: &&&str| {
        said.contains(&format!("alertname=\"{name}\"")) || said.contains(&format!("alertname=\\\"{name}\\\""))
    };
    Some(names.iter().filter(fires).map(|name| (*name).to_owned()).collect())
}
