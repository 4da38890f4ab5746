//! Whose request it is, and what is between two of different principals in one
//! environment.

use std::sync::Arc;

use crate::config::BetweenPrincipals;

/// On whose behalf a request runs, among those of its function: its tenant, or the
/// function's owner.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Principal(Option<Arc<str>>);

impl Principal {
    /// The principal of a request with this tenant, or of one without.
    #[must_use]
    pub fn of(tenant: Option<&str>) -> Self {
        Self(tenant.map(Into::into))
    }
}

/// What is between two requests of different principals, besides a reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Separation {
    /// A branch-predictor barrier.
    Barrier,
    /// Another environment.
    Fresh,
    /// Nothing.
    Nothing,
}

impl Separation {
    /// What a configuration means on a host whose kernel issues barriers, or does not.
    #[must_use]
    pub const fn new(policy: BetweenPrincipals, barriers: bool) -> Self {
        match policy {
            BetweenPrincipals::Auto if barriers => Self::Barrier,
            BetweenPrincipals::Barrier => Self::Barrier,
            BetweenPrincipals::Auto | BetweenPrincipals::Fresh => Self::Fresh,
            BetweenPrincipals::None => Self::Nothing,
        }
    }
}

/// Who has been served in an environment.
#[derive(Debug, Default)]
pub(super) struct Served {
    last: Option<Principal>,
    /// More than one principal was.
    mixed: bool,
}

impl Served {
    /// Whether nobody was.
    pub(super) const fn is_nobody(&self) -> bool {
        self.last.is_none()
    }

    /// Whether nobody else than `next` was served last.
    pub(super) fn is_same(&self, next: &Principal) -> bool {
        self.last.as_ref().is_none_or(|last| last == next)
    }

    /// Whether a request of `next` needs a barrier. Once there were two principals, all
    /// do: where a vCPU runs next, any of the earlier ones may have run last.
    pub(super) fn needs_barrier(&self, next: &Principal) -> bool {
        self.mixed || !self.is_same(next)
    }

    /// `next` is served.
    pub(super) fn serve(&mut self, next: Principal) {
        self.mixed = self.needs_barrier(&next);
        self.last = Some(next);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_barrier_the_default_is_a_fresh_environment() {
        use BetweenPrincipals::{Auto, Barrier, Fresh, None};
        assert_eq!(BetweenPrincipals::default(), Auto);
        for (policy, with, without) in [
            (Auto, Separation::Barrier, Separation::Fresh),
            (Barrier, Separation::Barrier, Separation::Barrier),
            (Fresh, Separation::Fresh, Separation::Fresh),
            (None, Separation::Nothing, Separation::Nothing),
        ] {
            assert_eq!(Separation::new(policy, true), with);
            assert_eq!(Separation::new(policy, false), without);
        }
    }

    #[test]
    fn after_a_second_principal_every_request_needs_a_barrier() {
        let (a, b, owner) = (
            Principal::of(Some("a")),
            Principal::of(Some("b")),
            Principal::of(None),
        );
        let mut served = Served::default();
        assert!(served.is_nobody());
        for principal in [&a, &b, &owner] {
            assert!(!served.needs_barrier(principal));
        }
        served.serve(a.clone());
        served.serve(a.clone());
        assert!(!served.needs_barrier(&a));
        assert!(served.needs_barrier(&b) && served.needs_barrier(&owner));
        served.serve(b.clone());
        assert!(served.is_same(&b) && served.needs_barrier(&b));
        served.serve(b.clone());
        assert!(served.needs_barrier(&b));
    }
}
