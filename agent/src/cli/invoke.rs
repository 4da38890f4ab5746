//! `snapback invoke`.

use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use snapback_proto::ids::FunctionName;

use super::Connection;
use super::client::{self, Chunks};

#[derive(Debug, Args)]
pub(super) struct InvokeArguments {
    /// Which function.
    name: FunctionName,
    /// A file with the event (JSON), or `-` for standard input.
    #[arg(long, value_name = "FILE")]
    payload: PathBuf,
    /// Write what the request cost, as JSON, to this file, after its reset.
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    #[command(flatten)]
    connection: Connection,
}

/// Prints the answer; an error of the function goes to standard error, and the
/// exit status is 1.
pub(super) async fn run(arguments: InvokeArguments) -> anyhow::Result<ExitCode> {
    let socket = &arguments.connection.socket;
    let payload = read(&arguments.payload)?;
    let path = format!("/2015-03-31/functions/{}/invocations", arguments.name);
    let body = Chunks::whole(payload);
    let request = client::request("POST", &path, Some("application/json"), body)?;
    let answer = client::send(socket, request).await?.success()?;
    if let Some(file) = &arguments.record {
        let path = format!("/v1/requests/{}", answer.header("x-amzn-requestid"));
        let record = client::send(socket, client::empty("GET", &path)?)
            .await?
            .success()?;
        std::fs::write(file, &record.body)
            .with_context(|| format!("{} cannot be written", file.display()))?;
    }
    if answer.header("x-amz-function-error").is_empty() {
        let mut out = io::stdout().lock();
        out.write_all(&answer.body)?;
        out.write_all(b"\n")?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut err = io::stderr().lock();
    err.write_all(b"the function failed: ")?;
    err.write_all(&answer.body)?;
    err.write_all(b"\n")?;
    Ok(ExitCode::FAILURE)
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    if path == Path::new("-") {
        let mut bytes = Vec::new();
        io::stdin().lock().read_to_end(&mut bytes)?;
        return Ok(bytes);
    }
    std::fs::read(path).with_context(|| format!("{} cannot be read", path.display()))
}
