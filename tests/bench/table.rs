//! The table: medians over rounds, how far the rounds lie apart, and how many times nginx's cost is ours.

use std::fmt;
use std::time::Duration;

/// One round of one server.
#[derive(Debug, Clone)]
pub struct Sample {
    /// Processor time of the server.
    pub used: Duration,
    pub elapsed: Duration,
    /// How much was done.
    pub amount: f64,
}

/// What all rounds of one server come to.
#[derive(Debug)]
pub struct Measured {
    cost: f64,
    /// Half of what lies between the cheapest and the dearest round, in parts of the median.
    spread: Option<f64>,
    per_second: Option<f64>,
}

#[derive(Debug, Default)]
pub struct Table(Vec<Row>);

#[derive(Debug)]
struct Row {
    name: &'static str,
    unit: &'static str,
    target: Option<f64>,
    nginx: Measured,
    provost: Measured,
}

impl Measured {
    /// Processor time in units of which a second has `scale`.
    pub fn cpu(samples: &[Sample], scale: f64) -> Self {
        let costs = sorted(samples.iter().map(|sample| sample.used.as_secs_f64() * scale / sample.amount));
        let rates = sorted(samples.iter().map(|sample| sample.amount / sample.elapsed.as_secs_f64()));
        let cost = median(&costs);
        let spread = (costs[costs.len() - 1] - costs[0]) / 2.0 / cost;
        Self { cost, spread: Some(spread), per_second: Some(median(&rates)) }
    }

    pub fn memory(kib: f64) -> Self {
        Self { cost: kib, spread: None, per_second: None }
    }
}

impl Table {
    /// Adds a line; `measured` is nginx's, then ours.
    pub fn add(&mut self, name: &'static str, unit: &'static str, target: Option<f64>, measured: Vec<Measured>) {
        let [nginx, provost] = <[Measured; 2]>::try_from(measured).expect("two servers");
        self.0.push(Row { name, unit, target, nginx, provost });
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<35}{:>22}{:>22}{:>8}  target", "server's cost of one", "nginx", "provost", "ratio")?;
        for row in &self.0 {
            let ratio = row.nginx.cost / row.provost.cost;
            write!(f, "{:<35}{}{}{ratio:>7.2}×", row.name, row.nginx.shown(row.unit), row.provost.shown(row.unit))?;
            match row.target {
                Some(target) if ratio >= target => writeln!(f, "  {target}× reached")?,
                Some(target) => writeln!(f, "  {target}× MISSED")?,
                None => writeln!(f, "  -")?,
            }
        }
        writeln!(f)?;
        writeln!(f, "{:<35}{:>22}{:>22}", "done per second, load on one core", "nginx", "provost")?;
        for row in &self.0 {
            if let (Some(nginx), Some(provost)) = (row.nginx.per_second, row.provost.per_second) {
                let digits = if nginx < 100.0 { 2 } else { 0 };
                writeln!(f, "{:<35}{nginx:>22.digits$}{provost:>22.digits$}", row.name)?;
            }
        }
        Ok(())
    }
}

impl Measured {
    fn shown(&self, unit: &str) -> String {
        let spread = self.spread.map_or(String::new(), |spread| format!(" ±{:.0} %", spread * 100.0));
        format!("{:>15}{spread:>7}", format!("{:.1} {unit}", self.cost))
    }
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}

fn median(sorted: &[f64]) -> f64 {
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { f64::midpoint(sorted[middle - 1], sorted[middle]) }
}
