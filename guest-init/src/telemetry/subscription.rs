//! What a subscriber asks for: the body of `PUT /2022-07-01/telemetry`.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use serde::Deserialize;

use crate::runtime_api::errors::Refusal;

/// A kind of telemetry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Events of the environment.
    Platform,
    /// The function's output.
    Function,
    /// Extensions' output.
    Extension,
}

/// A checked subscription.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscription {
    /// What it wants.
    pub kinds: Vec<Kind>,
    /// A delivery is due at this many events …
    pub max_items: usize,
    /// … or at this many bytes …
    pub max_bytes: usize,
    /// … or when the first event is this old.
    pub timeout: Duration,
    /// Where it listens: always in this environment.
    pub address: SocketAddr,
    /// The path, and the host as it was named.
    pub path: String,
    /// For the `Host` header.
    pub host: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Body {
    #[serde(default)]
    schema_version: Option<String>,
    types: Vec<Kind>,
    #[serde(default)]
    buffering: Buffering,
    destination: Destination,
}

/// The defaults are Lambda's.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Buffering {
    max_items: usize,
    max_bytes: usize,
    timeout_ms: u64,
}

impl Default for Buffering {
    fn default() -> Self {
        Self {
            max_items: 10_000,
            max_bytes: 262_144,
            timeout_ms: 1_000,
        }
    }
}

#[derive(Debug, Deserialize)]
struct Destination {
    protocol: String,
    #[serde(rename = "URI")]
    uri: String,
}

/// The schemas that events here have.
const SCHEMAS: [&str; 3] = ["2022-07-01", "2022-12-13", "2025-01-29"];
/// The names of this environment.
const HOSTS: [&str; 4] = ["sandbox.localdomain", "sandbox", "localhost", "127.0.0.1"];
/// The Runtime API's own port is nobody's destination.
const MAX_PATH: usize = 1024;

impl Subscription {
    /// Reads a subscription. `own_port` is the API's, which nobody else has.
    ///
    /// # Errors
    /// Says what is wrong first.
    pub fn parse(body: &[u8], own_port: u16) -> Result<Self, Refusal> {
        let body: Body = serde_json::from_slice(body).map_err(|_| Refusal::InvalidFormat)?;
        let invalid = |what| Err(Refusal::InvalidSubscription(what));
        if let Some(version) = &body.schema_version
            && !SCHEMAS.contains(&version.as_str())
        {
            return invalid("schemaVersion is not known");
        }
        if body.types.is_empty() {
            return invalid("types is empty");
        }
        let Buffering {
            max_items,
            max_bytes,
            timeout_ms,
        } = body.buffering;
        if !(1_000..=10_000).contains(&max_items) {
            return invalid("maxItems must be from 1000 to 10000");
        }
        if !(262_144..=1_048_576).contains(&max_bytes) {
            return invalid("maxBytes must be from 262144 to 1048576");
        }
        if !(25..=30_000).contains(&timeout_ms) {
            return invalid("timeoutMs must be from 25 to 30000");
        }
        if body.destination.protocol != "HTTP" {
            return invalid("the destination's protocol must be HTTP");
        }
        let (host, port, path) = split(&body.destination.uri).ok_or(
            Refusal::InvalidSubscription("the destination's URI must be http://host:port/path"),
        )?;
        if !HOSTS.contains(&host) {
            return invalid("the destination must be sandbox.localdomain");
        }
        if port == own_port {
            return invalid("the destination's port is reserved");
        }
        Ok(Self {
            kinds: body.types,
            max_items,
            max_bytes,
            timeout: Duration::from_millis(timeout_ms),
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
            path: path.to_owned(),
            host: format!("{host}:{port}"),
        })
    }
}

/// Host, port and path of a URI. What could not stand in a request line is refused.
fn split(uri: &str) -> Option<(&str, u16, &str)> {
    let rest = uri.strip_prefix("http://")?;
    let (authority, path) = match rest.find('/') {
        Some(at) => rest.split_at(at),
        None => (rest, "/"),
    };
    let (host, port) = authority.split_once(':').unwrap_or((authority, "80"));
    let plain = path.len() <= MAX_PATH && path.chars().all(|c| c.is_ascii_graphic());
    let port = port.parse().ok().filter(|&port| port != 0)?;
    plain.then_some((host, port, path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(change: impl FnOnce(&mut serde_json::Value)) -> Result<Subscription, Refusal> {
        let mut body = serde_json::json!({
            "schemaVersion": "2022-12-13",
            "types": ["platform", "function"],
            "buffering": {"maxItems": 1000, "maxBytes": 262_144, "timeoutMs": 100},
            "destination": {"protocol": "HTTP", "URI": "http://sandbox.localdomain:8080/x"},
        });
        change(&mut body);
        Subscription::parse(body.to_string().as_bytes(), 9001)
    }

    #[test]
    fn a_subscription_says_what_when_and_where() {
        let subscription = parse(|_| {}).unwrap();
        assert_eq!(subscription.kinds, [Kind::Platform, Kind::Function]);
        assert_eq!(subscription.address, "127.0.0.1:8080".parse().unwrap());
        assert_eq!(subscription.path, "/x");
        let defaults = parse(|body| drop(body.as_object_mut().unwrap().remove("buffering")));
        let defaults = defaults.unwrap();
        assert_eq!((defaults.max_items, defaults.max_bytes), (10_000, 262_144));
        assert_eq!(defaults.timeout, Duration::from_secs(1));
    }

    #[test]
    fn what_is_outside_lambdas_ranges_or_this_environment_is_refused() {
        type Change = fn(&mut serde_json::Value);
        let cases: [Change; 12] = [
            |b| b["schemaVersion"] = "2020-01-01".into(),
            |b| b["types"] = serde_json::json!([]),
            |b| b["types"] = serde_json::json!(["everything"]),
            |b| b["buffering"]["maxItems"] = 999.into(),
            |b| b["buffering"]["maxBytes"] = 1_048_577.into(),
            |b| b["buffering"]["timeoutMs"] = 24.into(),
            |b| b["destination"]["protocol"] = "TCP".into(),
            |b| b["destination"]["URI"] = "http://10.0.0.1:80/".into(),
            |b| b["destination"]["URI"] = "http://localhost:9001/".into(),
            |b| b["destination"]["URI"] = "http://localhost:0/".into(),
            |b| b["destination"]["URI"] = "http://localhost:80/a b\r\nc".into(),
            |b| b["destination"]["URI"] = "https://localhost:80/".into(),
        ];
        for (number, change) in cases.into_iter().enumerate() {
            assert!(parse(change).is_err(), "case {number}");
        }
    }
}
