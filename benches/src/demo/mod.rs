//! The demonstration: a real function in a microVM that is restored lazily and reset
//! after every request.
//!
//! ```text
//!  start agent ─► create function (boot, snapshot) ─► N × (request, its record)
//!       └────────────────── stop agent, in every case ◄──────────┘
//! ```
//!
//! Whatever goes wrong becomes a failed check of the report, beside what was measured
//! until then.

pub mod answer;
pub mod documents;
mod results;
mod show;

use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper::Method;
use serde_json::json;
use snapback_proto::words::chain;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;

use crate::client::{Client, ClientError};
use crate::facts::Record;
use crate::floor::{self, FloorError};
use crate::function::{self, CreateError, Function, FunctionError};
use crate::node::{Node, NodeError};
use crate::progress;
use crate::report::{Report, Samples, milliseconds};
use answer::Answer;
use documents::{Document, DocumentsError};
use results::Course;
pub use results::EACH;

/// The function that is shown, in the source tree.
const EXAMPLE: &str = "examples/word-report";
/// How long a request may take beyond the function's own timeout.
const INVOKE_MARGIN: Duration = Duration::from_secs(60);
/// How long the agent may take for an answer of its own; it waits for resets.
const AGENT_LIMIT: Duration = Duration::from_secs(30);
/// Requests to the agent alone, for the floor.
const ROUND_TRIPS: usize = 50;
/// Lines of the agent's log that are shown after a failure.
const LOG_LINES: usize = 60;

/// What to show.
#[derive(Debug, Clone)]
pub struct Options {
    /// Kernel, guest-init and root file systems.
    pub assets: PathBuf,
    /// Where `snapback` and `snapback-vmm` are.
    pub bin_dir: PathBuf,
    /// The function's folder; by default the example of the source tree.
    pub function: Option<PathBuf>,
    /// Folders with documents; by default Debian's licences and the source tree.
    pub documents: Vec<PathBuf>,
    /// How many requests are sent.
    pub requests: usize,
}

/// The demonstration broke off.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// The function is not there.
    #[error(transparent)]
    Function(#[from] FunctionError),
    /// There is nothing to send.
    #[error(transparent)]
    Documents(#[from] DocumentsError),
    /// The floor could not be measured.
    #[error(transparent)]
    Floor(#[from] FloorError),
    /// The agent does not run.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// The agent did not answer.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The function was not created.
    #[error(transparent)]
    Create(#[from] CreateError),
    /// The answer does not say which request it answers.
    #[error("an answer has no request id (status {status}): {body}")]
    NoRequestId {
        /// HTTP's status.
        status: u16,
        /// The begin of the body.
        body: String,
    },
    /// Somebody pressed Ctrl-C.
    #[error("it was interrupted")]
    Interrupted,
    /// Signals cannot be heard.
    #[error("cannot listen for signals")]
    Signals(#[source] std::io::Error),
}

/// Runs the demonstration. Progress goes to standard error; the report has at least
/// one failed check if anything went wrong.
pub async fn run(options: &Options) -> Report {
    let mut report = Report::new("demo");
    let mut courses = Vec::new();
    let outcome = prepare_and_drive(options, &mut report, &mut courses).await;
    results::add(&mut report, &courses, options.requests);
    if let Err(error) = outcome {
        report.check("demo/completed", false, chain(&error));
    }
    report
}

async fn prepare_and_drive(
    options: &Options,
    report: &mut Report,
    courses: &mut Vec<Course>,
) -> Result<(), DemoError> {
    let (folder, mut folders) = match &options.function {
        Some(folder) => (folder.clone(), Vec::new()),
        None => {
            let tree = function::source_tree(EXAMPLE)?;
            (tree.join(EXAMPLE), vec![tree])
        }
    };
    let function = Function::load(&folder)?;
    if options.documents.is_empty() {
        folders.insert(0, documents::LICENCES.into());
    } else {
        folders.clone_from(&options.documents);
    }
    let documents = documents::find(&folders)?;
    report.floor.extend(floor::page_copy()?);

    progress::step("start the agent");
    let mut node = Node::start(&options.bin_dir, &options.assets, "")?;
    let run = Run {
        bin_dir: &options.bin_dir,
        folder: &folder,
        function: &function,
        documents: &documents,
        requests: options.requests,
    };
    let outcome = tokio::select! {
        outcome = run.drive(&mut node, report, courses) => outcome,
        interrupted = interrupted() => interrupted,
    };
    progress::step("stop the agent");
    let stopped = node.stop().await;
    let detail = match &stopped {
        Ok(()) => "the agent ended by itself when it was asked to".to_owned(),
        Err(error) => chain(error),
    };
    report.check("demo/agent_stopped", stopped.is_ok(), detail);
    let wrong = |course: &Course| !course.mistakes().is_empty() || course.record.reset.is_none();
    if outcome.is_err() || stopped.is_err() || courses.iter().any(wrong) {
        progress::log(&node.log_tail(LOG_LINES));
    }
    outcome
}

/// Everything that a run needs to know.
struct Run<'a> {
    bin_dir: &'a Path,
    folder: &'a Path,
    function: &'a Function,
    documents: &'a [Document],
    requests: usize,
}

impl Run<'_> {
    async fn drive(
        &self,
        node: &mut Node,
        report: &mut Report,
        courses: &mut Vec<Course>,
    ) -> Result<(), DemoError> {
        node.ready().await?;
        let client = node.client();
        round_trips(&client, report).await?;

        progress::step("boot the function once and snapshot it");
        let (function, socket) = (self.function, node.socket());
        let build = function::create(self.bin_dir, self.folder, function, socket).await?;
        let once = |duration| {
            let mut samples = Samples::new("ms");
            samples.push(milliseconds(duration));
            samples
        };
        report.add(once(build.cold_boot()).row("demo/cold_boot", []));
        let snapshot = Duration::from_nanos(build.snapshot_ns);
        report.add(once(snapshot).row("demo/snapshot", []));

        let requests = self.requests;
        progress::step(&format!(
            "send {requests} documents; leaving traces is part of each request and its figures"
        ));
        for document in self.documents.iter().cycle().take(self.requests) {
            let course = self.request(&client, document).await?;
            courses.push(course.clone());
            show::course(courses.len(), &course);
        }
        Ok(())
    }

    /// One request, and what it cost: the agent tells when the reset after it is done.
    async fn request(&self, client: &Client, document: &Document) -> Result<Course, DemoError> {
        let name = &self.function.name;
        let path = format!("/2015-03-31/functions/{name}/invocations");
        let event = json!({"title": document.title, "text": document.text}).to_string();
        let limit = Duration::from_secs(self.function.timeout_s.into()) + INVOKE_MARGIN;
        let begin = Instant::now();
        let answer = client.send(Method::POST, &path, event, limit).await?;
        let latency = begin.elapsed();
        let Some(id) = answer.header("x-amzn-requestid") else {
            return Err(DemoError::NoRequestId {
                status: answer.status.as_u16(),
                body: answer.shown(),
            });
        };
        let path = format!("/v1/requests/{id}");
        let failed = answer.header("x-amz-function-error").is_some();
        let answered = if failed || !answer.status.is_success() {
            Err(format!("status {}: {}", answer.status, answer.shown()))
        } else {
            answer.json::<Answer>().map_err(|error| chain(&error))
        };
        let record = client.send(Method::GET, &path, "", AGENT_LIMIT).await?;
        Ok(Course {
            document: document.clone(),
            latency,
            answer: answered,
            record: record.json::<Record>()?,
        })
    }
}

/// The floor of every request: a connection and an answer that needs no work.
async fn round_trips(client: &Client, report: &mut Report) -> Result<(), DemoError> {
    let mut samples = Samples::new("ms");
    for _ in 0..ROUND_TRIPS {
        let begin = Instant::now();
        client
            .send(Method::GET, "/healthz", "", AGENT_LIMIT)
            .await?;
        samples.push(milliseconds(begin.elapsed()));
    }
    report
        .floor
        .extend(samples.row("floor/http_round_trip", []));
    Ok(())
}

/// Ends when this process is asked to.
async fn interrupted() -> Result<(), DemoError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(DemoError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(DemoError::Signals)?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Err(DemoError::Interrupted)
}
