//! The table: medians over rounds, their spread, and the ratio of nginx's cost to provost's.
//!
//! The ratio is the median of the ratios of each round: the servers take turns, so that a disturbance affects both
//! alike.

use std::fmt;
use std::time::Duration;

/// One round of one server.
#[derive(Debug, Clone)]
pub struct Sample {
    /// Processor time of the server.
    pub used: Duration,
    pub elapsed: Duration,
    /// The amount of work.
    pub amount: f64,
}

/// The results of one server.
#[derive(Debug)]
pub struct Measured {
    /// The cost of each round, in order.
    costs: Vec<f64>,
    per_second: Option<f64>,
}

#[derive(Debug, Default)]
pub struct Table(Vec<Row>);

#[derive(Debug)]
struct Row {
    name: String,
    unit: &'static str,
    target: Option<f64>,
    nginx: Measured,
    provost: Measured,
}

impl Measured {
    /// Processor time in units of which a second has `scale`.
    pub fn cpu(samples: &[Sample], scale: f64) -> Self {
        let costs = samples.iter().map(|sample| sample.used.as_secs_f64() * scale / sample.amount).collect();
        let rates = samples.iter().map(|sample| sample.amount / sample.elapsed.as_secs_f64());
        Self { costs, per_second: Some(median(rates)) }
    }

    pub fn memory(kib: f64) -> Self {
        Self { costs: vec![kib], per_second: None }
    }

    /// Half the range of the rounds' costs, relative to the median.
    fn spread(&self) -> f64 {
        let costs = sorted(self.costs.iter().copied());
        (costs[costs.len() - 1] - costs[0]) / 2.0 / median(costs.into_iter())
    }
}

impl Table {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds a line; `measured` is nginx's, then provost's.
    pub fn add(&mut self, name: &str, unit: &'static str, target: Option<f64>, measured: Vec<Measured>) {
        let [nginx, provost] = <[Measured; 2]>::try_from(measured).expect("two servers");
        self.0.push(Row { name: name.to_owned(), unit, target, nginx, provost });
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<35}{:>22}{:>22}{:>8}  target", "server's cost of one", "nginx", "provost", "ratio")?;
        for row in &self.0 {
            let ratio = median(row.nginx.costs.iter().zip(&row.provost.costs).map(|(nginx, provost)| nginx / provost));
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
        let spread = if self.costs.len() > 1 { format!(" ±{:.0} %", self.spread() * 100.0) } else { String::new() };
        format!("{:>15}{spread:>7}", format!("{:.1} {unit}", median(self.costs.iter().copied())))
    }
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let sorted = sorted(values);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { f64::midpoint(sorted[middle - 1], sorted[middle]) }
}
