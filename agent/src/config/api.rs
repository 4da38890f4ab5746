//! Where the API can be reached, besides its Unix socket.

use std::net::SocketAddr;

use serde::Deserialize;

use super::ConfigError;

/// The API beyond the Unix socket.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Api {
    /// An address to serve HTTP on, for clients that know no Unix sockets; none by
    /// default. Whoever can connect may do everything: there are no credentials.
    pub tcp: Option<SocketAddr>,
    /// Whether `tcp` may be an address that other hosts reach.
    pub allow_remote: bool,
}

impl Api {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        match self.tcp {
            Some(address) if !address.ip().is_loopback() && !self.allow_remote => {
                Err(ConfigError::Remote(address))
            }
            _ => Ok(()),
        }
    }
}
