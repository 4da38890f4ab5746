//! `snapback function create|list|delete`.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use snapback_proto::ids::FunctionName;

use super::Connection;
use super::client::{self, Chunks};
use super::description::{CreateArguments, Package};
use super::upload::upload;
use crate::api::{CreateFunction, FunctionInfo, FunctionList};

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
    let Package {
        mut config,
        code,
        layers,
    } = arguments.package()?;
    let socket = &arguments.connection.socket;
    let code = upload(socket, &code).await?.code;
    for layer in &layers {
        config.layers.push(upload(socket, layer).await?.code);
    }
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
