//! `snapback function create|list|delete`.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use hyper::body::Bytes;
use snapback_proto::cpu::CpuTemplate;
use snapback_proto::ids::FunctionName;
use tokio::sync::mpsc;

use super::Connection;
use super::client::{self, Chunks};
use crate::api::{CodeInfo, CreateFunction, FunctionInfo, FunctionList};
use crate::function::{FunctionConfig, default_memory, default_timeout};
use crate::logging::{Format, Level, LoggingConfig};

#[derive(Debug, Subcommand)]
pub(super) enum FunctionCommand {
    /// Upload code, boot the function once and snapshot it at its ready point.
    Create(CreateArguments),
    /// List the functions.
    List(ListArguments),
    /// Remove a function with its snapshot.
    Delete(DeleteArguments),
}

#[derive(Debug, Args)]
pub(super) struct CreateArguments {
    /// 1 to 64 letters, digits, `-` or `_`.
    name: FunctionName,
    /// For example python3.11.
    #[arg(long)]
    runtime: String,
    /// For example app.handler.
    #[arg(long)]
    handler: String,
    /// The folder with the code.
    #[arg(long, value_name = "DIR")]
    code: PathBuf,
    /// Memory, in MiB.
    #[arg(long, value_name = "MIB", default_value_t = default_memory())]
    memory: u32,
    /// How long a request may run, in seconds.
    #[arg(long, value_name = "S", default_value_t = default_timeout())]
    timeout: u32,
    /// Which processor the function sees: host, x86-64-v2, x86-64-v3 or x86-64-v4.
    #[arg(long, value_name = "TEMPLATE", default_value_t)]
    cpu_template: CpuTemplate,
    /// An environment variable; may be given several times.
    #[arg(long = "env", value_name = "K=V", value_parser = variable)]
    environment: Vec<(String, String)>,
    /// What log lines look like, the function's and the platform's.
    #[arg(long, value_enum, default_value_t)]
    log_format: Format,
    /// Which lines a function that logs JSON leaves out.
    #[arg(long, value_enum)]
    log_level: Option<Level>,
    /// Print the function as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Debug, Args)]
pub(super) struct ListArguments {
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Debug, Args)]
pub(super) struct DeleteArguments {
    /// Which function.
    name: FunctionName,
    #[command(flatten)]
    connection: Connection,
}

fn variable(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write it as NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

pub(super) async fn run(command: FunctionCommand) -> anyhow::Result<ExitCode> {
    match command {
        FunctionCommand::Create(arguments) => create(arguments).await?,
        FunctionCommand::List(arguments) => list(&arguments).await?,
        FunctionCommand::Delete(arguments) => {
            let path = format!("/v1/functions/{}", arguments.name);
            let request = client::empty("DELETE", &path)?;
            client::send(&arguments.connection.socket, request)
                .await?
                .success()?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn create(arguments: CreateArguments) -> anyhow::Result<()> {
    let socket = &arguments.connection.socket;
    let code = upload(socket, &arguments.code).await?.code;
    let environment: BTreeMap<_, _> = arguments.environment.into_iter().collect();
    let config = FunctionConfig {
        name: arguments.name,
        runtime: arguments.runtime,
        handler: arguments.handler,
        memory_mb: arguments.memory,
        timeout_s: arguments.timeout,
        cpu_template: arguments.cpu_template,
        environment,
        logging: LoggingConfig {
            format: arguments.log_format,
            application_log_level: arguments.log_level,
        },
    };
    let body = serde_json::to_vec(&CreateFunction { config, code })?;
    let request = client::request(
        "POST",
        "/v1/functions",
        Some("application/json"),
        Chunks::whole(body),
    )?;
    let answer = client::send(socket, request).await?.success()?;
    let function: FunctionInfo = serde_json::from_slice(&answer.body)?;
    let mut out = io::stdout().lock();
    if arguments.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&function)?)?;
    } else {
        let build = function.build;
        writeln!(
            out,
            "{} is ready (boot {}, init {}, snapshot {})",
            function.config.name,
            milliseconds(build.boot_ns),
            milliseconds(build.init_ns),
            milliseconds(build.snapshot_ns),
        )?;
    }
    Ok(())
}

fn milliseconds(ns: u64) -> String {
    format!("{}.{:03} ms", ns / 1_000_000, ns / 1000 % 1000)
}

async fn list(arguments: &ListArguments) -> anyhow::Result<()> {
    let request = client::empty("GET", "/v1/functions")?;
    let answer = client::send(&arguments.connection.socket, request)
        .await?
        .success()?;
    let list: FunctionList = serde_json::from_slice(&answer.body)?;
    let mut out = io::stdout().lock();
    if arguments.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&list)?)?;
        return Ok(());
    }
    for FunctionInfo { config, .. } in list.functions {
        let (name, runtime, handler) = (config.name.as_str(), config.runtime, config.handler);
        let (memory, timeout) = (config.memory_mb, config.timeout_s);
        writeln!(
            out,
            "{name:<32} {runtime:<12} {handler:<24} {memory} MiB  {timeout} s"
        )?;
    }
    Ok(())
}

/// Sends the folder as a tar archive while it is read.
async fn upload(socket: &Path, folder: &Path) -> anyhow::Result<CodeInfo> {
    let folder = folder.to_owned();
    anyhow::ensure!(folder.is_dir(), "{} is not a folder", folder.display());
    let (sender, body) = Chunks::channel();
    let name = folder.clone();
    let reading = tokio::task::spawn_blocking(move || {
        let archived = archive(&folder, sender.clone());
        if let Err(error) = &archived {
            // The agent must not take half an archive for a whole one.
            let broken = io::Error::new(error.kind(), error.to_string());
            let _ = sender.blocking_send(Err(broken));
        }
        archived
    });
    let request = client::request("POST", "/v1/code", Some("application/x-tar"), body)?;
    let answer = client::send(socket, request).await;
    // An agent that refuses stops reading, and that breaks the archive: its reason
    // is the better one.
    let answer = match (answer, reading.await?) {
        (Ok(answer), _) => answer.success()?,
        (Err(_), Err(error)) if error.kind() != io::ErrorKind::BrokenPipe => {
            return Err(error).with_context(|| format!("{} cannot be read", name.display()));
        }
        (Err(error), _) => return Err(error),
    };
    Ok(serde_json::from_slice(&answer.body)?)
}

fn archive(folder: &Path, sender: mpsc::Sender<io::Result<Bytes>>) -> io::Result<()> {
    let out = io::BufWriter::with_capacity(64 * 1024, ToChunks(sender));
    let mut builder = tar::Builder::new(out);
    builder.follow_symlinks(false);
    builder.append_dir_all(".", folder)?;
    builder.into_inner()?.flush()
}

/// Writes into a request's body.
struct ToChunks(mpsc::Sender<io::Result<Bytes>>);

impl Write for ToChunks {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let chunk = Bytes::copy_from_slice(bytes);
        self.0
            .blocking_send(Ok(chunk))
            .map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
