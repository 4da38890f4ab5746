//! What is between requests that do not trust one another.

use serde::Deserialize;

/// What is between requests that do not trust one another.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Isolation {
    /// What is between two requests of different principals in one microVM, besides its
    /// reset. A request's principal is its tenant (`X-Amz-Tenant-Id`); all requests
    /// without one have the same principal, the function's owner.
    pub between_principals: BetweenPrincipals,
}

/// See [`Isolation::between_principals`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BetweenPrincipals {
    /// [`Self::Barrier`] where this host's kernel says that it issues one, else
    /// [`Self::Fresh`].
    #[default]
    Auto,
    /// The processor forgets its branch predictions before the second one. When the
    /// host's kernel does not say that it issues such barriers, the agent warns of it.
    Barrier,
    /// The second one gets a microVM in which no other principal had a request.
    Fresh,
    /// Nothing: for nodes whose principals trust one another.
    None,
}
