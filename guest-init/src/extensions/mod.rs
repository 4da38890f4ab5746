//! The function's extensions: who they are, and what each is doing.
//!
//! External extensions are the executables in `/opt/extensions`: they are started
//! before the runtime, and it is started when all of them have registered. Internal
//! ones are parts of the runtime's process that register while it initialises.
//!
//! * [`state`]: one extension's states and transitions.
//! * [`events`]: what `event/next` answers.
//!
//! Every request is followed by a reset to the snapshot, so its end is the end of
//! whatever an extension keeps in memory. So that nothing is lost that was to be sent
//! at the end, an extension that wants `SHUTDOWN` gets it after *each* request, once
//! runtime and extensions have asked for what comes next; and in the snapshot it waits
//! for its first `INVOKE`, every time.

pub mod events;
pub mod state;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::runtime_api::errors::Refusal;
use state::{Effect, Event, State};

/// Most extensions of a function, as on Lambda.
pub const MAX_EXTENSIONS: usize = 10;

/// Longest name of an extension, in bytes.
const MAX_NAME: usize = 128;

/// What an extension wants to hear of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wishes {
    /// `INVOKE`.
    pub invoke: bool,
    /// `SHUTDOWN`.
    pub shutdown: bool,
}

/// One extension.
#[derive(Debug)]
pub struct Extension {
    /// Its name: of an external one, its file's.
    pub name: String,
    /// What it proves itself with.
    pub id: String,
    /// Whether it is a process of its own.
    pub external: bool,
    /// What it wants to hear of.
    pub wishes: Wishes,
    /// The connection whose call to `event/next` waits.
    pub waiter: Option<u8>,
    state: State,
}

/// All of them.
#[derive(Debug, Default)]
pub struct Extensions {
    list: Vec<Extension>,
    /// The runtime is initialised: no other may register.
    closed: bool,
}

/// The body of `register`.
#[derive(Debug, Deserialize)]
struct Registration {
    #[serde(default)]
    events: Vec<String>,
}

impl Extensions {
    /// Adds one whose process has been started, and returns its place.
    pub fn launched(&mut self, name: String) -> usize {
        self.add(name, true, State::Launched)
    }

    fn add(&mut self, name: String, external: bool, state: State) -> usize {
        self.list.push(Extension {
            name,
            id: String::new(),
            external,
            wishes: Wishes::default(),
            waiter: None,
            state,
        });
        self.list.len() - 1
    }

    /// The one at a place.
    #[must_use]
    pub fn get(&self, place: usize) -> Option<&Extension> {
        self.list.get(place)
    }

    /// The one at a place.
    pub fn get_mut(&mut self, place: usize) -> Option<&mut Extension> {
        self.list.get_mut(place)
    }

    /// Every place.
    pub fn places(&self) -> std::ops::Range<usize> {
        0..self.list.len()
    }

    /// The place of the one that proves itself with `id`.
    ///
    /// # Errors
    /// When there is none.
    pub fn identify(&self, id: Option<&str>) -> Result<usize, Refusal> {
        let id = id.ok_or(Refusal::MissingExtensionId)?;
        let known = |extension: &Extension| !extension.id.is_empty() && extension.id == id;
        self.list
            .iter()
            .position(known)
            .ok_or(Refusal::UnknownExtension)
    }

    /// Registers an extension under `id`; returns its place.
    ///
    /// # Errors
    /// When it may not, or the body is not what it should be.
    pub fn register(
        &mut self,
        name: Option<&str>,
        id: String,
        body: &[u8],
    ) -> Result<usize, Refusal> {
        let name = name
            .filter(|name| !name.is_empty() && name.len() <= MAX_NAME)
            .ok_or(Refusal::InvalidExtensionName)?;
        let registration: Registration =
            serde_json::from_slice(body).map_err(|_| Refusal::InvalidFormat)?;
        let mut wishes = Wishes::default();
        for event in &registration.events {
            match event.as_str() {
                "INVOKE" => wishes.invoke = true,
                "SHUTDOWN" => wishes.shutdown = true,
                _ => return Err(Refusal::InvalidExtensionEvent),
            }
        }
        let external = |extension: &Extension| extension.external && extension.name == name;
        let place = match self.list.iter().position(external) {
            Some(place) => place,
            None if self.closed => return Err(Refusal::RegistrationClosed),
            // The end of the runtime's process is the end of it, without a word.
            None if wishes.shutdown => return Err(Refusal::ShutdownNotSupported),
            None if self.list.iter().any(|e| e.name == name) => {
                return Err(Refusal::InvalidExtensionState);
            }
            None if self.list.len() >= MAX_EXTENSIONS => return Err(Refusal::TooManyExtensions),
            None => self.add(name.to_owned(), false, State::Launched),
        };
        self.happen(place, Event::Register)?;
        if let Some(extension) = self.list.get_mut(place) {
            extension.id = id;
            extension.wishes = wishes;
        }
        Ok(place)
    }

    /// No other may register from now on.
    pub fn close(&mut self) {
        self.closed = true;
    }

    /// Lets something happen to one.
    ///
    /// # Errors
    /// When it is not allowed now.
    pub fn happen(&mut self, place: usize, event: Event) -> Result<Effect, Refusal> {
        let extension = self.list.get_mut(place).ok_or(Refusal::UnknownExtension)?;
        let (state, effect) = extension
            .state
            .on(event)
            .ok_or(Refusal::InvalidExtensionState)?;
        extension.state = state;
        Ok(effect)
    }

    /// Whether some that were started have not registered.
    #[must_use]
    pub fn are_missing(&self) -> bool {
        self.list.iter().any(|e| e.state == State::Launched)
    }

    /// Whether all wait for what comes next.
    #[must_use]
    pub fn are_settled(&self) -> bool {
        self.list.iter().all(|e| e.state.is_settled())
    }

    /// Whether there are any that would have to finish something after an answer.
    #[must_use]
    pub fn are_there(&self) -> bool {
        self.list.iter().any(|e| e.state != State::Gone)
    }

    /// Whether one is still on its way out.
    #[must_use]
    pub fn are_leaving(&self) -> bool {
        self.list.iter().any(|e| e.state == State::Leaving)
    }

    /// Whether any of them is a process of its own.
    #[must_use]
    pub fn any_external(&self) -> bool {
        self.list.iter().any(|e| e.external)
    }

    /// The place of the one whose call to `event/next` waits on a connection.
    #[must_use]
    pub fn waiting_on(&self, slot: u8) -> Option<usize> {
        self.list.iter().position(|e| e.waiter == Some(slot))
    }
}

/// The executables of a folder, by name.
#[must_use]
pub fn executables(folder: &Path) -> Vec<PathBuf> {
    let is_program = |path: &PathBuf| {
        let metadata = fs::metadata(path);
        metadata.is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
    };
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut found: Vec<_> = entries.map(|e| e.path()).filter(is_program).collect();
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn register(extensions: &mut Extensions, name: &str, events: &str) -> Result<usize, Refusal> {
        let body = format!("{{\"events\": [{events}]}}");
        extensions.register(Some(name), format!("id of {name}"), body.as_bytes())
    }

    #[test]
    fn an_external_extension_registers_once_and_under_its_own_name() {
        let mut extensions = Extensions::default();
        let place = extensions.launched("agent".to_owned());
        assert!(extensions.are_missing());
        extensions.close();
        assert_eq!(
            register(&mut extensions, "other", "\"INVOKE\""),
            Err(Refusal::RegistrationClosed)
        );
        let events = "\"INVOKE\", \"SHUTDOWN\"";
        assert_eq!(register(&mut extensions, "agent", events), Ok(place));
        assert_eq!(
            register(&mut extensions, "agent", events),
            Err(Refusal::InvalidExtensionState)
        );
        assert!(!extensions.are_missing() && !extensions.are_settled());
        assert_eq!(extensions.identify(Some("id of agent")), Ok(place));
        assert_eq!(
            extensions.identify(Some("")),
            Err(Refusal::UnknownExtension)
        );
        assert_eq!(extensions.identify(None), Err(Refusal::MissingExtensionId));
    }

    #[test]
    fn what_is_no_registration_is_refused() {
        let mut extensions = Extensions::default();
        for (name, events, refusal) in [
            ("", "", Refusal::InvalidExtensionName),
            ("x", "\"SHUTDOWN\"", Refusal::ShutdownNotSupported),
            ("x", "\"invoke\"", Refusal::InvalidExtensionEvent),
            ("x", "7", Refusal::InvalidFormat),
        ] {
            assert_eq!(register(&mut extensions, name, events), Err(refusal));
        }
        for number in 0..MAX_EXTENSIONS {
            assert!(register(&mut extensions, &format!("x{number}"), "").is_ok());
        }
        assert_eq!(
            register(&mut extensions, "one more", ""),
            Err(Refusal::TooManyExtensions)
        );
    }
}
