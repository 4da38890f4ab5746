//! The agent's configuration: a TOML file, every key of which has a default.
//!
//! Numbers carry their unit in the key's name. A value outside its range is
//! refused at start, with the key's name.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;

mod api;
mod isolation;
mod limits;
mod machines;
mod memory;
mod paths;
mod range;
mod reset;
mod timeouts;

pub use api::Api;
pub use isolation::{BetweenPrincipals, Isolation};
pub use limits::Limits;
pub use machines::{Cgroup, DEFAULT_COMMAND_LINE, Kernel, Pools, Users};
pub use memory::{Fill, Pager, Snapshots};
pub use paths::Paths;
use range::Range;
pub use reset::{Fraction, Reset};
pub use timeouts::Timeouts;

/// Where the configuration is looked for.
pub const DEFAULT_FILE: &str = "/etc/snapback/config.toml";

/// Everything that can be configured.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where things are.
    pub paths: Paths,
    /// Where the API can be reached, besides its Unix socket.
    pub api: Api,
    /// How much at once.
    pub limits: Limits,
    /// How long at most.
    pub timeouts: Timeouts,
    /// What a microVM's process may use.
    pub cgroup: Cgroup,
    /// Who the microVMs' processes are on this host.
    pub users: Users,
    /// What is kept ready.
    pub pools: Pools,
    /// The threads that fill in guest memory.
    pub pager: Pager,
    /// What happens to a microVM after its request.
    pub reset: Reset,
    /// What is between requests that do not trust one another.
    pub isolation: Isolation,
    /// Snapshots on disk.
    pub snapshots: Snapshots,
    /// The guest's kernel.
    pub kernel: Kernel,
}

/// The configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("the configuration {} cannot be read", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is not what it should be.
    #[error("the configuration {} is not valid", path.display())]
    Parse {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// A number is outside its range.
    #[error("`{key}` is {value}, and must be from {least} to {most}")]
    OutOfRange {
        /// Which key.
        key: &'static str,
        /// What it says.
        value: u64,
        /// The smallest that is allowed.
        least: u64,
        /// The largest that is allowed.
        most: u64,
    },
    /// `pager.fill_kib` is not a power of two.
    #[error("`pager.fill_kib` is {0}, and must be a power of two")]
    NotAPowerOfTwo(u32),
    /// Other hosts would reach the API.
    #[error(
        "`api.tcp` is {0}, which other hosts may reach, and the API asks nobody who they are: \
         use a loopback address, or set `api.allow_remote`"
    )]
    Remote(SocketAddr),
}

impl Config {
    /// Reads `path`; without one, the default file when there is one, else the
    /// defaults.
    ///
    /// # Errors
    /// When the file cannot be read or says something that is not allowed.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        let file = path.unwrap_or(Path::new(DEFAULT_FILE));
        let text = match fs::read_to_string(file) {
            Ok(text) => text,
            Err(error) if path.is_none() && error.kind() == io::ErrorKind::NotFound => {
                return Ok(Self::default());
            }
            Err(source) => {
                return Err(ConfigError::Read {
                    path: file.to_owned(),
                    source,
                });
            }
        };
        let config: Self = toml::from_str(&text).map_err(|source| ConfigError::Parse {
            path: file.to_owned(),
            source: Box::new(source),
        })?;
        config.validate()?;
        Ok(config)
    }

    /// Checks every range.
    ///
    /// # Errors
    /// Names the first key that is outside its range.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let ranges = [
            self.limits.ranges(),
            self.timeouts.ranges(),
            self.cgroup.ranges(),
            self.users.ranges(),
            self.pools.ranges(),
            self.pager.ranges(),
            self.reset.ranges(),
        ];
        for Range {
            key,
            value,
            least,
            most,
        } in ranges.into_iter().flatten()
        {
            if value < least || value > most {
                return Err(ConfigError::OutOfRange {
                    key,
                    value,
                    least,
                    most,
                });
            }
        }
        self.api.check()?;
        if !self.pager.fill_kib.is_power_of_two() {
            return Err(ConfigError::NotAPowerOfTwo(self.pager.fill_kib));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid() {
        Config::default().validate().unwrap();
    }

    #[test]
    fn a_wrong_key_or_number_is_refused_by_name() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "[limits]\nmax_enviroments = 3\n").unwrap();
        assert!(matches!(
            Config::load(Some(file.path())),
            Err(ConfigError::Parse { .. })
        ));
        fs::write(file.path(), "[limits]\nmax_environments = 0\n").unwrap();
        let error = Config::load(Some(file.path())).unwrap_err();
        assert!(
            error.to_string().contains("limits.max_environments"),
            "{error}"
        );
        fs::write(file.path(), "[pager]\nfill_kib = 12\n").unwrap();
        assert!(matches!(
            Config::load(Some(file.path())),
            Err(ConfigError::NotAPowerOfTwo(12))
        ));
    }

    #[test]
    fn the_api_is_for_this_host_unless_it_is_said_otherwise() {
        let check = |text: &str| toml::from_str::<Config>(text).unwrap().validate();
        check("").unwrap();
        check("[api]\ntcp = '127.0.0.1:9000'").unwrap();
        check("[api]\ntcp = '[::1]:9000'").unwrap();
        for address in ["0.0.0.0:9000", "192.0.2.1:9000", "[::]:9000"] {
            let remote = format!("[api]\ntcp = '{address}'");
            let error = check(&remote).unwrap_err();
            assert!(error.to_string().contains("api.allow_remote"), "{error}");
            check(&format!("{remote}\nallow_remote = true")).unwrap();
        }
    }

    #[test]
    fn a_fraction_is_from_none_to_all() {
        let parsed = |text: &str| toml::from_str::<Config>(&format!("[reset]\n{text}"));
        for (value, sampled) in [("0", 0), ("1", 1), ("1.0", 1)] {
            let config = parsed(&format!("verify_fraction = {value}")).unwrap();
            for random in [0, 1, u32::MAX] {
                let all = config.reset.verify_fraction.samples(random);
                assert_eq!(u32::from(all), sampled, "{value} {random}");
            }
        }
        let half = parsed("verify_fraction = 0.5")
            .unwrap()
            .reset
            .verify_fraction;
        assert!(half.samples(u32::MAX / 2 - 1) && !half.samples(u32::MAX / 2 + 1));
        for value in ["1.01", "-0.1", "nan", "'all'"] {
            assert!(
                parsed(&format!("verify_fraction = {value}")).is_err(),
                "{value}"
            );
        }
    }

    #[test]
    fn a_named_file_must_exist() {
        assert!(Config::load(Some(Path::new("/nonexistent/snapback.toml"))).is_err());
    }
}
