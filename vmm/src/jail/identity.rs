//! Who the process becomes, and how its agent tells it.

use std::num::NonZeroU32;

/// What comes before `UID:GID` on the command line.
const OPTION: &str = "--user";

/// The user and group that the process becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// User id on the host.
    pub uid: u32,
    /// Group id on the host.
    pub gid: u32,
}

/// A command line that does not name a user.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not what the program takes: nothing, or `{OPTION} UID:GID`, neither of them 0")]
pub struct BadArguments(String);

impl Identity {
    /// The arguments of a VMM process that shall become this user.
    #[must_use]
    pub fn arguments(self) -> [String; 2] {
        [OPTION.to_owned(), format!("{}:{}", self.uid, self.gid)]
    }

    /// The user that a program's arguments, without its own name, tell it to become.
    ///
    /// # Errors
    /// When they say anything else.
    pub fn from_arguments(
        arguments: impl IntoIterator<Item = String>,
    ) -> Result<Option<Self>, BadArguments> {
        let words: Vec<String> = arguments.into_iter().collect();
        let identity = match &words[..] {
            [] => return Ok(None),
            [option, user] if option == OPTION => parse(user),
            _ => None,
        };
        identity.map(Some).ok_or(BadArguments(words.join(" ")))
    }
}

fn parse(user: &str) -> Option<Identity> {
    let (uid, gid) = user.split_once(':')?;
    let number = |text: &str| text.parse::<NonZeroU32>().ok().map(NonZeroU32::get);
    Some(Identity {
        uid: number(uid)?,
        gid: number(gid)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_name_a_user_or_nothing() {
        let read = |words: &[&str]| Identity::from_arguments(words.iter().map(|w| (*w).to_owned()));
        assert_eq!(read(&[]), Ok(None));
        let identity = Identity { uid: 7, gid: 8 };
        assert_eq!(
            Identity::from_arguments(identity.arguments()),
            Ok(Some(identity))
        );
        for bad in [
            &["--user"][..],
            &["7:8"],
            &["--user", "7"],
            &["--user", "0:8"],
            &["--user", "7:0"],
            &["--user", "7:8:9"],
            &["--user", "7:4294967296"],
            &["--user", "-7:8"],
            &["--user", "7:8", "more"],
        ] {
            let error = read(bad).unwrap_err().to_string();
            assert!(error.contains(&bad.join(" ")), "{error}");
        }
    }
}
