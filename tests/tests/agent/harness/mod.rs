//! What the tests share: one agent with two functions, and copies of its state for agents that
//! do not survive their test.

use std::ops::Deref;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

pub use snapback_tests::harness::{
    LIMIT, agent, cli, code, given, http, place, processes, tour_code, wait_for,
};

use agent::Agent;
use place::Place;

/// Configuration of an agent that starts no microVM before it is needed, nor one of its own, for
/// tests that count them.
pub const NO_BLANKS: &str = "[pager]\ngather = false\n[pools]\nblank = 0\n";

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

/// What was said in the course of a request (or in `init FUNCTION`), in the order in which it came:
/// from which stream, and what.
pub fn said(agent: &Agent, request: &str) -> Vec<(String, String)> {
    let log = agent.place().log();
    let lines = log.lines().filter_map(|line| {
        let (_, line) = line.split_once(" snapback::function: ")?;
        let (text, fields) = line.rsplit_once(" environment=")?;
        let (_, fields) = fields.split_once(&format!(" request={request:?} stream="))?;
        Some((fields.trim_matches('"').to_owned(), text.to_owned()))
    });
    lines.collect()
}

/// A place of a test's own, with both functions registered and nothing running; and the turn,
/// to be kept as long.
pub fn own_place() -> (Place, MutexGuard<'static, ()>) {
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    (Place::copy(SHARED.place()), turn)
}
