//! What the tests share: one agent with two functions, and copies of its state for agents that
//! do not survive their test.

pub mod agent;
pub mod cli;
pub mod http;
pub mod place;
pub mod processes;

use std::ops::Deref;
use std::path::PathBuf;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use agent::Agent;
use place::Place;

/// Nothing here takes longer, even where a machine is emulated.
pub const LIMIT: Duration = Duration::from_secs(60);

/// Configuration of an agent that starts no microVM before it is needed, for tests that count
/// them.
pub const NO_BLANKS: &str = "[pools]\nblank = 0\n";

/// The function that does what its event says; its requests may run for a minute.
pub const TOUR: &str = "tour";
/// The same code in another function, with a snapshot of its own.
pub const OTHER: &str = "other";

/// One test at a time, whatever the number of the test harness's threads.
static TURN: Mutex<()> = Mutex::new(());

static SHARED: LazyLock<Agent> = LazyLock::new(|| {
    let place = Place::new();
    // The functions' creation is one agent's life; the shared agent is another's.
    let maker = place.start("");
    for name in [TOUR, OTHER] {
        let created = maker.create(name, &tour_code(), &["--timeout", "60"]);
        assert!(created.success, "{created:?}\n{}", maker.place().log());
    }
    let place = maker.terminate();
    place.keep_template();
    place.start("")
});

/// The folder with the code of [`TOUR`] and [`BRIEF`].
pub fn tour_code() -> PathBuf {
    function_code("tour")
}

/// The folder with the code of one of the tests' functions.
pub fn function_code(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("functions")
        .join(name)
}

/// A file or folder that the one who runs the tests names.
pub fn given(variable: &str) -> PathBuf {
    std::env::var_os(variable)
        .unwrap_or_else(|| panic!("{variable} is not set: run `cargo xtask test`"))
        .into()
}

/// The shared agent, while a test has its turn. Shows the agent's log when the test fails.
pub struct Shared {
    agent: &'static Agent,
    log_start: usize,
    _turn: MutexGuard<'static, ()>,
}

/// The agent that most tests share.
pub fn shared() -> Shared {
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let agent: &'static Agent = &SHARED;
    // What the test before left running is no concern of this one.
    wait_for("the end of earlier requests", || {
        let environments = agent.environments();
        (environments.busy + environments.resetting == 0).then_some(())
    });
    Shared {
        log_start: agent.place().log().len(),
        agent,
        _turn: turn,
    }
}

impl Deref for Shared {
    type Target = Agent;

    fn deref(&self) -> &Agent {
        self.agent
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.agent.place().log();
            eprintln!("the agent's log:\n{}", &log[self.log_start..]);
        }
    }
}

/// A place of a test's own, with both functions registered and nothing running; and the turn,
/// to be kept as long.
pub fn own_place() -> (Place, MutexGuard<'static, ()>) {
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    (Place::copy(SHARED.place()), turn)
}

/// Waits, bounded, until there is something.
pub fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < LIMIT, "{what} did not come in {LIMIT:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
