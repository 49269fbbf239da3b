//! Trying it out: a probe record goes all the way that a challenge's would, and is removed whatever happens.

use super::failure::DnsError;
use super::{Dns, Place};

/// Adds a TXT record under `challenge_name`, waits until every authority has it, and removes it.
pub async fn probe(dns: &Dns, challenge_name: &str, say: &(dyn Fn(String) + Send + Sync)) -> Result<Place, DnsError> {
    let place = dns.locate(challenge_name).await?;
    let values = [format!("provost probe {}", random_word()?)];
    let seen = publish(dns, &place, &values, say).await;
    // Also when adding failed: it may have been done, and only the answer lost.
    let removed = dns.remove(&place, &values).await;
    seen.and(removed).map(|()| place)
}

async fn publish(
    dns: &Dns,
    place: &Place,
    values: &[String],
    say: &(dyn Fn(String) + Send + Sync),
) -> Result<(), DnsError> {
    dns.add(place, values).await?;
    say(format!("{}: a probe record was added in zone {}", place.name, place.zone));
    dns.wait_until_visible(place, values, say).await
}

fn random_word() -> Result<String, DnsError> {
    let mut bytes = [0; 8];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| DnsError::Values("there is no randomness".to_owned()))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
