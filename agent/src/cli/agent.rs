//! `snapback agent`: the node, from start to SIGTERM.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};

use crate::api::Server;
use crate::config::Config;
use crate::node::Node;
use crate::telemetry;

/// Arguments override the configuration file.
#[derive(Debug, Args)]
pub(super) struct AgentArguments {
    /// The configuration file [default: /etc/snapback/config.toml, when there is one].
    #[arg(long)]
    config: Option<PathBuf>,
    /// The API's Unix socket.
    #[arg(long)]
    socket: Option<PathBuf>,
    /// An address to serve HTTP on, besides the socket. Whoever can connect may do everything.
    #[arg(long, value_name = "ADDRESS:PORT")]
    tcp: Option<SocketAddr>,
    /// Functions, images and snapshots.
    #[arg(long)]
    state_dir: Option<PathBuf>,
    /// The folder with `vmlinux`, `guest-init.cpio` and `rootfs/`.
    #[arg(long)]
    assets: Option<PathBuf>,
    /// The `snapback-vmm` program.
    #[arg(long)]
    vmm: Option<PathBuf>,
    /// The cgroup v2 folder below which every microVM has its own.
    #[arg(long)]
    cgroup_root: Option<PathBuf>,
}

impl AgentArguments {
    fn configuration(&self) -> anyhow::Result<Config> {
        let mut config = Config::load(self.config.as_deref())?;
        let overrides = [
            (&self.socket, &mut config.paths.socket),
            (&self.state_dir, &mut config.paths.state_dir),
            (&self.assets, &mut config.paths.assets),
        ];
        for (argument, value) in overrides {
            if let Some(argument) = argument {
                value.clone_from(argument);
            }
        }
        if self.vmm.is_some() {
            config.paths.vmm.clone_from(&self.vmm);
        }
        if self.cgroup_root.is_some() {
            config.cgroup.root.clone_from(&self.cgroup_root);
        }
        if self.tcp.is_some() {
            config.api.tcp = self.tcp;
        }
        config.validate()?;
        Ok(config)
    }
}

/// Runs until a signal asks for the end.
pub(super) fn run(arguments: &AgentArguments) -> anyhow::Result<ExitCode> {
    telemetry::init();
    let config = arguments.configuration()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("agent")
        .build()
        .context("the runtime does not start")?;
    runtime.block_on(serve(config))?;
    // A task that cannot be ended does not keep the agent alive.
    runtime.shutdown_background();
    Ok(ExitCode::SUCCESS)
}

async fn serve(config: Config) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    // The socket first: whoever loses it must not touch the state.
    let server = Server::bind(&config.paths.socket, config.api.tcp).await?;
    let node = match Node::start(config) {
        Ok(node) => node,
        Err(error) => {
            server.abandon();
            return Err(error.into());
        }
    };
    let server = server.start(std::sync::Arc::clone(&node));
    notify(NotifyState::Ready);
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("shutting down");
    notify(NotifyState::Stopping);
    // Connections stay open while requests run, and /readyz says 503.
    node.shut_down().await;
    server.unlink();
    server.stop().await;
    tracing::info!("ended");
    Ok(())
}

fn notify(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "systemd was not told");
    }
}
