//! A Grafana dashboard of the metrics. Pure.

use serde_json::{Value, json};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PanelKind {
    /// One number.
    Stat,
    /// Lines over time.
    Lines,
}

/// A panel: kind, title, unit, query, and legend of each series.
type Panel = (PanelKind, &'static str, &'static str, &'static str, &'static str);

const PANELS: [Panel; 14] = [
    (PanelKind::Stat, "Ready", "bool_yes_no", "provost_ready", "{{instance}}"),
    (
        PanelKind::Stat,
        "Certificates, time left",
        "s",
        "provost_certificate_expiry_timestamp_seconds - time()",
        "{{key}} {{name}}",
    ),
    (PanelKind::Stat, "Phones seen in a day", "short", "sum(provost_phones_seen)", "phones"),
    (PanelKind::Stat, "Phones waiting", "short", "sum(provost_phones{state=\"waiting\"})", "waiting"),
    (PanelKind::Stat, "Broken constituencies", "short", "sum(provost_constituencies{state=\"broken\"})", "broken"),
    (PanelKind::Stat, "Version", "string", "provost_build_info", "{{version}}"),
    (
        PanelKind::Lines,
        "Requests",
        "reqps",
        "sum by (code) (rate(provost_requests_total[$__rate_interval]))",
        "{{code}}",
    ),
    (
        PanelKind::Lines,
        "Refusals by reason",
        "reqps",
        "sum by (reason) (rate(provost_refusals_total[$__rate_interval]))",
        "{{reason}}",
    ),
    (
        PanelKind::Lines,
        "Handshakes",
        "ops",
        "sum by (outcome) (rate(provost_handshakes_total[$__rate_interval]))",
        "{{outcome}}",
    ),
    (PanelKind::Lines, "Phones by state", "short", "sum by (state) (provost_phones)", "{{state}}"),
    (
        PanelKind::Lines,
        "Bytes sent",
        "Bps",
        "sum by (constituency) (rate(provost_sent_bytes_total[$__rate_interval]))",
        "{{constituency}}",
    ),
    (PanelKind::Lines, "Connections", "short", "sum by (kind) (provost_connections)", "{{kind}}"),
    (
        PanelKind::Lines,
        "Renewals that failed",
        "short",
        "sum by (key) (increase(provost_renewal_failures_total[1d]))",
        "{{key}}",
    ),
    (
        PanelKind::Lines,
        "Dropped phone events and log lines",
        "short",
        "increase(provost_ledger_dropped_sightings_total[1h]) + increase(provost_access_log_lost_lines_total[1h])",
        "{{instance}}",
    ),
];

/// The width of Grafana's grid.
const GRID: usize = 24;

/// The dashboard, ready for import.
pub(super) fn dashboard() -> anyhow::Result<String> {
    let stats = PANELS.iter().filter(|panel| panel.0 == PanelKind::Stat).count();
    let place = |index: usize| match index.checked_sub(stats) {
        None => json!({ "x": index * GRID / stats, "y": 0, "w": GRID / stats, "h": 4 }),
        Some(line) => json!({ "x": line % 2 * GRID / 2, "y": 4 + line / 2 * 8, "w": GRID / 2, "h": 8 }),
    };
    let panels: Vec<Value> =
        PANELS.iter().enumerate().map(|(index, panel)| panel_json(index + 1, panel, &place(index))).collect();
    let dashboard = json!({
        "title": "provost", "uid": "provost", "tags": ["provost"], "schemaVersion": 39, "editable": true,
        "time": { "from": "now-24h", "to": "now" }, "refresh": "1m",
        "templating": { "list": [
            { "name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus" }
        ] },
        "panels": panels,
    });
    Ok(serde_json::to_string_pretty(&dashboard)?)
}

fn panel_json(id: usize, (kind, title, unit, query, legend): &Panel, place: &Value) -> Value {
    let source = json!({ "type": "prometheus", "uid": "${datasource}" });
    let is_text = *unit == "string";
    let options = match kind {
        PanelKind::Stat if is_text => json!({ "textMode": "name", "reduceOptions": { "calcs": ["lastNotNull"] } }),
        PanelKind::Stat => json!({ "reduceOptions": { "calcs": ["lastNotNull"] } }),
        PanelKind::Lines => {
            json!({ "legend": { "displayMode": "list", "placement": "bottom" }, "tooltip": { "mode": "multi" } })
        }
    };
    let field = if is_text { json!({}) } else { json!({ "unit": unit, "min": 0 }) };
    json!({
        "id": id, "title": title, "type": if *kind == PanelKind::Stat { "stat" } else { "timeseries" },
        "datasource": source, "gridPos": place, "options": options,
        "fieldConfig": { "defaults": field, "overrides": [] },
        "targets": [{ "refId": "A", "expr": query, "legendFormat": legend, "datasource": source }],
    })
}
