//! Requests to a function, and what the agent knows of them afterwards.

use std::time::Duration;

use hyper::Method;
use tokio::time::{Instant, sleep};

use crate::client::{Client, ClientError};
use crate::facts::{Function, Readiness, Record};
use crate::series::Sample;

/// How long one request may take.
const INVOKE_LIMIT: Duration = Duration::from_secs(120);
/// How long the agent may take for an answer of its own.
const AGENT_LIMIT: Duration = Duration::from_secs(30);
/// How long the agent may take until nothing happens any more.
const REST_LIMIT: Duration = Duration::from_secs(300);
const REST_INTERVAL: Duration = Duration::from_millis(10);
/// What a machine does right after it became idle is not part of the next sample.
const SETTLE: Duration = Duration::from_millis(50);

/// A request failed, or nothing can be said of it.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The agent did not answer.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The function was not called, or failed.
    #[error("a request was answered with {status}: {body}")]
    Request {
        /// HTTP's status.
        status: u16,
        /// The begin of the body.
        body: String,
    },
    /// The blank microVMs are not there in time, or something does not end.
    #[error("{wanted} blank microVMs and nothing else: not so within {REST_LIMIT:?}")]
    NoRest {
        /// How many blank ones were waited for.
        wanted: usize,
    },
}

/// Calls the function `name` once, with an event in JSON.
///
/// # Errors
/// When there is no answer, the answer is an error, or the agent does not know the
/// request.
pub async fn request(client: &Client, name: &str, event: &str) -> Result<Sample, CallError> {
    let path = format!("/2015-03-31/functions/{name}/invocations");
    let event = event.to_owned();
    let begin = Instant::now();
    let answer = client
        .send(Method::POST, &path, event, INVOKE_LIMIT)
        .await?;
    let latency = begin.elapsed();
    let failed = answer.header("x-amz-function-error").is_some();
    let Some(id) = answer
        .header("x-amzn-requestid")
        .filter(|_| answer.status.is_success() && !failed)
    else {
        return Err(CallError::Request {
            status: answer.status.as_u16(),
            body: answer.shown(),
        });
    };
    let path = format!("/v1/requests/{id}");
    let record = client.send(Method::GET, &path, "", AGENT_LIMIT).await?;
    Ok(Sample {
        latency,
        record: record.json::<Record>()?,
    })
}

/// The name of the snapshot that the function `name` has now.
///
/// # Errors
/// When the agent does not say.
pub async fn snapshot_of(client: &Client, name: &str) -> Result<String, CallError> {
    let path = format!("/v1/functions/{name}");
    let answer = client.send(Method::GET, &path, "", AGENT_LIMIT).await?;
    Ok(answer.json::<Function>()?.snapshot)
}

/// Waits until `blanks` microVMs wait and nothing else happens.
///
/// # Errors
/// When that does not come in time, or the agent does not answer.
pub async fn at_rest(client: &Client, blanks: usize) -> Result<(), CallError> {
    let begin = Instant::now();
    loop {
        let answer = client.send(Method::GET, "/readyz", "", AGENT_LIMIT).await?;
        let now = answer.json::<Readiness>()?.environments;
        let moving = now.blank_starting + now.starting + now.busy + now.resetting;
        if now.blank >= blanks && moving == 0 {
            sleep(SETTLE).await;
            return Ok(());
        }
        if begin.elapsed() > REST_LIMIT {
            return Err(CallError::NoRest { wanted: blanks });
        }
        sleep(REST_INTERVAL).await;
    }
}
