//! Which processor a guest sees.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A named set of processor features: the host's own, or a level of the x86-64
/// psABI ("x86-64 ABI", 3.1.1, micro-architecture levels).
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
pub enum CpuTemplate {
    /// Everything that KVM supports on this host.
    #[default]
    #[serde(rename = "host")]
    Host,
    /// `x86-64-v2`: up to SSE4.2.
    #[serde(rename = "x86-64-v2")]
    V2,
    /// `x86-64-v3`: up to AVX2.
    #[serde(rename = "x86-64-v3")]
    V3,
    /// `x86-64-v4`: up to AVX-512.
    #[serde(rename = "x86-64-v4")]
    V4,
}

/// A word is not a template's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a CPU template is one of: host, x86-64-v2, x86-64-v3, x86-64-v4")]
pub struct UnknownTemplate;

impl CpuTemplate {
    /// Every template.
    pub const ALL: [Self; 4] = [Self::Host, Self::V2, Self::V3, Self::V4];

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::V2 => "x86-64-v2",
            Self::V3 => "x86-64-v3",
            Self::V4 => "x86-64-v4",
        }
    }
}

impl fmt::Display for CpuTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for CpuTemplate {
    type Err = UnknownTemplate;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|template| template.name() == text)
            .ok_or(UnknownTemplate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_survives_its_name_and_its_wire_form() {
        for (number, template) in (0_u8..).zip(CpuTemplate::ALL) {
            assert_eq!(template.name().parse(), Ok(template));
            // The number is in state files.
            assert_eq!(postcard::to_stdvec(&template).unwrap(), [number]);
        }
        assert_eq!("x86-64-v5".parse::<CpuTemplate>(), Err(UnknownTemplate));
    }
}
