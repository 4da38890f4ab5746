//! What happens to a microVM after its request.

use serde::Deserialize;

use super::range::{Range, range};

/// What happens to a microVM after its request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Reset {
    /// Whether it is put back to its snapshot and serves on. Otherwise it is
    /// destroyed, and every request has a microVM that was restored for it.
    pub in_place: bool,
    /// Which part of the resets, from 0 to 1, is followed by a comparison of the whole
    /// microVM with its snapshot. Nobody waits for it who can have another microVM.
    pub verify_fraction: Fraction,
    /// Most pages of 4 KiB that a reset copies back. A microVM whose request wrote more
    /// is destroyed instead.
    pub page_budget: u64,
}

/// 256 MiB. Copying so many pages back takes as long as making another microVM
/// (`cargo xtask bench reset`; docs/decisions/0027).
const PAGE_BUDGET: u64 = 65_536;
/// All of the largest microVM's memory.
const MAX_PAGES: u64 = 4_194_304;

impl Reset {
    pub(super) fn ranges(&self) -> Vec<Range> {
        vec![range("reset.page_budget", self.page_budget, 1, MAX_PAGES)]
    }
}

impl Default for Reset {
    fn default() -> Self {
        Self {
            in_place: true,
            verify_fraction: Fraction(u32::MAX / 100),
            page_budget: PAGE_BUDGET,
        }
    }
}

/// A part of something, from 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "f64")]
pub struct Fraction(
    /// In units of 1/(2³² - 1).
    u32,
);

impl Fraction {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// Everything.
    pub const ALL: Self = Self(u32::MAX);

    /// Whether one is in the part that draws `random`, of all numbers with the same
    /// chance.
    #[must_use]
    pub const fn samples(self, random: u32) -> bool {
        self.0 == u32::MAX || random < self.0
    }
}

/// A number is no fraction.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[error("it must be from 0 to 1, and is {0}")]
pub struct NoFraction(f64);

impl TryFrom<f64> for Fraction {
    type Error = NoFraction;

    fn try_from(value: f64) -> Result<Self, NoFraction> {
        if !(0.0..=1.0).contains(&value) {
            return Err(NoFraction(value));
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "the product is from 0 to u32::MAX"
        )]
        let units = (value * f64::from(u32::MAX)).round() as u32;
        Ok(Self(units))
    }
}
