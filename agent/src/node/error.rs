//! Why the node could not do what was asked.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use snapback_proto::cpu::CpuTemplate;
use snapback_proto::ids::FunctionName;
use snapback_vmm::arch::x86_64::template::Unfit;
use snapback_vmm::snapshot::Digest;

use crate::admission::Refused;
use crate::exec::{BuildError, InvokeError, RestoreError};
use crate::function::InvalidFunction;
use crate::images::ImageError;
use crate::lease::LeaseError;
use crate::lock::LockError;
use crate::process::CgroupError;
use crate::snapshots::SnapshotError;
use crate::store::StoreError;

/// The node cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The state directory cannot be made.
    #[error("the state directory {} cannot be used", path.display())]
    StateDir {
        /// Which directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another agent has it.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The database cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The catalogue cannot be used.
    #[error(transparent)]
    Snapshots(#[from] SnapshotError),
    /// The images cannot be used.
    #[error(transparent)]
    Images(#[from] ImageError),
    /// The cgroups cannot be used.
    #[error(transparent)]
    Cgroups(#[from] CgroupError),
    /// The pager does not start.
    #[error("the pager does not start")]
    Pager(#[source] io::Error),
    /// There is no VMM program.
    #[error("there is no VMM program at {}: set `paths.vmm`", path.display())]
    NoVmm {
        /// Where it was looked for last.
        path: PathBuf,
    },
}

/// A request was not run.
#[derive(Debug, thiserror::Error)]
pub enum InvokeFailure {
    /// There is no such function.
    #[error("function {0} does not exist")]
    NotFound(FunctionName),
    /// It was not admitted.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// Its snapshot cannot be used.
    #[error("function {function} cannot run")]
    Snapshot {
        /// Which function.
        function: FunctionName,
        /// Why.
        #[source]
        source: SnapshotError,
    },
    /// No environment could be had.
    #[error("function {function} cannot run")]
    Lease {
        /// Which function.
        function: FunctionName,
        /// Why.
        #[source]
        source: LeaseError<RestoreError>,
    },
    /// Nothing became free in time.
    #[error("no environment of function {function} became free in time")]
    TooLate {
        /// Which function.
        function: FunctionName,
    },
    /// The request did not reach the function.
    #[error("function {function} was not reached")]
    Invoke {
        /// Which function.
        function: FunctionName,
        /// Why.
        #[source]
        source: InvokeError,
    },
    /// The request's task was cut off.
    #[error("the request was cut off")]
    CutOff(#[source] tokio::task::JoinError),
}

/// A function was not created.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// The configuration cannot be used.
    #[error(transparent)]
    Invalid(#[from] InvalidFunction),
    /// This host has no such processor.
    #[error("cpu_template {0} is not possible on this host: {1}")]
    Template(CpuTemplate, Unfit),
    /// There is one of this name.
    #[error("function {0} exists already, or is being created")]
    Exists(FunctionName),
    /// There are too many.
    #[error("there are {0} functions already, and no more are allowed")]
    TooMany(usize),
    /// The code was not uploaded.
    #[error("there is no code image {0}: upload the code first")]
    NoCode(Digest),
    /// A layer was not uploaded.
    #[error("there is no layer {0}: upload the layer first")]
    NoLayer(Digest),
    /// A container image needs another runtime.
    #[error(
        "the code is a container image, which brings its own runtime: the function's runtime \
         must be `provided.al2023`, not `{runtime}`"
    )]
    NotProvided {
        /// What it is.
        runtime: String,
    },
    /// A container image with layers.
    #[error("the code is a container image, which has no layers: put what they have into it")]
    LayersOfContainer,
    /// Code and layers cannot be put together.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The node is busy with other builds.
    #[error("the node is busy building other functions")]
    Busy,
    /// The node is shutting down.
    #[error("the node is shutting down")]
    Draining,
    /// A file that belongs to the installation cannot be read.
    #[error("{} cannot be read", path.display())]
    Asset {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel gave no random bytes for a name.
    #[error("the snapshot cannot be named")]
    Name(#[source] io::Error),
    /// The function could not be booted, or failed to initialise.
    #[error("function {function} could not be built")]
    Build {
        /// Which function.
        function: FunctionName,
        /// Why.
        #[source]
        source: Arc<BuildError>,
    },
    /// The snapshot could not be written.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The task was cut off.
    #[error("the function's creation was cut off")]
    CutOff(#[from] tokio::task::JoinError),
}

/// A function was not deleted.
#[derive(Debug, thiserror::Error)]
pub enum DeleteError {
    /// There is no such function.
    #[error("function {0} does not exist")]
    NotFound(FunctionName),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}
