//! Waits for one VMM process and cleans up after it.

use std::process::ExitStatus;

use tokio::process::Child;
use tokio::sync::watch;

use super::cgroup::Cgroup;
use super::fate::Fate;
use super::users::User;
use crate::ids::EnvironmentId;
use crate::telemetry::log_vmm;

/// Runs until the process has ended, kills it when its fate is sealed, and
/// removes its cgroup. Its user is free again when it is gone. `exited` is told at
/// the very end.
pub async fn reap(
    environment: EnvironmentId,
    mut child: Child,
    cgroup: Option<Cgroup>,
    user: Option<User>,
    fate: Fate,
    exited: watch::Sender<bool>,
) {
    let log = child
        .stderr
        .take()
        .map(|stderr| log_vmm(environment, stderr));
    let log = tokio::spawn(async move {
        if let Some(log) = log {
            log.await;
        }
    });
    let status = tokio::select! {
        status = child.wait() => status,
        _ = fate.sealed() => {
            if let Some(cgroup) = &cgroup {
                cgroup.kill();
            }
            // It may have ended by itself by now.
            let _ = child.start_kill();
            child.wait().await
        }
    };
    fate.seal(super::fate::Cause::Gone);
    // The pipe ends with the process; nobody else has its other end.
    let _ = log.await;
    if let Some(cgroup) = cgroup {
        cgroup.remove().await;
    }
    drop(user);
    report(environment, status);
    // Nobody may be waiting.
    let _ = exited.send(true);
}

fn report(environment: EnvironmentId, status: std::io::Result<ExitStatus>) {
    match status {
        Ok(status) => tracing::debug!(%environment, %status, "the VMM process ended"),
        Err(error) => tracing::error!(%environment, %error, "the VMM process was not reaped"),
    }
}
