//! Users of the host for VMM processes: each has one to itself, so that one which
//! left its jail is still nobody to the others.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use snapback_vmm::jail::Identity;

use crate::config;

/// Every user of the range has a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("all {count} users from {first} on have a VMM process: raise `users.count`")]
pub struct NoUserLeft {
    first: u32,
    count: u32,
}

/// The range, and who of it has a process.
#[derive(Debug)]
pub struct Users {
    range: config::Users,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    /// Numbers within the range.
    numbers: HashSet<u32>,
    /// Where the next search begins: a number that was given back rests for long.
    next: u32,
}

/// A user; free again when this is dropped.
#[derive(Debug)]
pub struct User {
    users: Arc<Users>,
    number: u32,
}

impl Users {
    /// Nobody has a process yet.
    #[must_use]
    pub fn new(range: config::Users) -> Arc<Self> {
        Arc::new(Self {
            range,
            taken: Mutex::default(),
        })
    }

    /// A user that has no process.
    ///
    /// # Errors
    /// When all have one.
    pub fn take(self: &Arc<Self>) -> Result<User, NoUserLeft> {
        let config::Users { first, count } = self.range;
        let mut taken = self.taken();
        let from = taken.next;
        let number = (from..count)
            .chain(0..from)
            .find(|number| !taken.numbers.contains(number))
            .ok_or(NoUserLeft { first, count })?;
        taken.numbers.insert(number);
        taken.next = (number + 1) % count;
        Ok(User {
            users: Arc::clone(self),
            number,
        })
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl User {
    /// The user, and the group of the same number.
    #[must_use]
    pub fn identity(&self) -> Identity {
        let id = self.users.range.first + self.number;
        Identity { uid: id, gid: id }
    }
}

impl Drop for User {
    fn drop(&mut self) {
        self.users.taken().numbers.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_two_processes_at_once_and_a_number_that_was_given_back_rests() {
        let users = Users::new(config::Users {
            first: 5000,
            count: 3,
        });
        let uid = |user: &User| (user.identity().uid, user.identity().gid);
        let (one, two) = (users.take().unwrap(), users.take().unwrap());
        assert_eq!((uid(&one), uid(&two)), ((5000, 5000), (5001, 5001)));
        drop(one);
        let three = users.take().unwrap();
        assert_eq!(uid(&three), (5002, 5002));
        let again = users.take().unwrap();
        assert_eq!(uid(&again), (5000, 5000));
        let refused = users.take().unwrap_err().to_string();
        assert!(refused.contains("all 3 users from 5000 on"), "{refused}");
        drop(two);
        assert_eq!(uid(&users.take().unwrap()), (5001, 5001));
    }
}
