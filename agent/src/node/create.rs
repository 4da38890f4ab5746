//! Creating a function: boot, initialise, snapshot, register.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use snapback_proto::ids::FunctionName;
use snapback_vmm::arch::x86_64::{cpuid, template};
use snapback_vmm::snapshot::Digest;
use snapback_vmm::snapshot::manifest::{Machine, SnapshotId};

use super::Node;
use super::error::CreateError;
use crate::exec::{BuildInput, Built, wall_clock_ns};
use crate::function::FunctionConfig;
use crate::ids::new_snapshot_id;
use crate::images::Kind;
use crate::snapshots::{Disks, Draft, Parts, SnapshotError};
use crate::store::{Function, StoreError};

/// What a function is made of.
#[derive(Debug, Clone)]
pub struct CreateInput {
    /// Its description.
    pub config: FunctionConfig,
    /// The image of its code, without layers.
    pub code: Digest,
}

/// Keeps a name and images while a function is being created.
struct Reservation {
    node: Arc<Node>,
    name: FunctionName,
}

impl Reservation {
    /// Keeps one more image.
    fn keep(&self, image: Digest) {
        if let Some(images) = self.node.creating().get_mut(&self.name) {
            images.push(image);
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.node.creating().remove(&self.name);
    }
}

/// What a build needs from the installation and its snapshot's parts.
struct Assets {
    kernel: File,
    initramfs: File,
    disks: Vec<File>,
    parts: Parts,
}

/// Checks that this host has the processor that a machine wants.
fn fits_host(machine: Machine) -> Result<(), CreateError> {
    let host = cpuid::of_this_host(machine.vcpus).map_err(SnapshotError::Host)?;
    match template::of_host(machine.template, &host, machine.vcpus) {
        Ok(_) => Ok(()),
        Err(source) => Err(CreateError::Template(machine.template, source)),
    }
}

impl Node {
    /// Creates a function; returns when it can be invoked. Goes on when the caller
    /// goes away.
    ///
    /// # Errors
    /// When anything fails; nothing is registered then.
    pub async fn create(
        self: &Arc<Self>,
        input: CreateInput,
    ) -> Result<Arc<Function>, CreateError> {
        let node = Arc::clone(self);
        let task = tokio::spawn(async move {
            let stop = node.stop.clone();
            tokio::select! {
                created = node.create_now(input) => created,
                () = stop.cancelled() => Err(CreateError::Draining),
            }
        });
        task.await?
    }

    async fn create_now(self: Arc<Self>, input: CreateInput) -> Result<Arc<Function>, CreateError> {
        let CreateInput { config, code } = input;
        config.validate(self.config.limits.max_memory_mib)?;
        fits_host(config.machine())?;
        let reservation = self.reserve(&config, code)?;
        self.check_images(&config, code)?;
        let patience = Duration::from_millis(self.config.timeouts.queue_ms);
        let _place = tokio::time::timeout(patience, self.builds.acquire())
            .await
            .map_err(|_| CreateError::Busy)?
            .map_err(|_| CreateError::Draining)?;
        tracing::info!(function = %config.name, "building");
        let code = if config.layers.is_empty() {
            code
        } else {
            self.images.compose(&code, &config.layers).await?
        };
        reservation.keep(code);
        let id = new_snapshot_id().map_err(CreateError::Name)?;
        let assets = tokio::task::spawn_blocking({
            let (node, config) = (Arc::clone(&self), config.clone());
            move || node.assets(&config, code)
        })
        .await??;
        let base = self.base_for(&assets.parts);
        let draft = self.catalogue.draft(id, base.as_ref())?;
        let (built, parts) = self.build(&config, assets, &draft).await?;
        let facts = built.facts;
        let snapshot = tokio::task::spawn_blocking(move || {
            draft.commit(built.memory, built.memory_len, &parts)
        })
        .await??;
        let function = Function {
            config,
            code,
            snapshot: snapshot.id().clone(),
            build: facts,
            created_unix_ms: wall_clock_ns() / 1_000_000,
        };
        self.register(&function).inspect_err(|_| {
            // The next start removes it, when this does not.
            let _ = self.remove_snapshot(&function.snapshot);
        })?;
        self.catalogue.adopt(&snapshot);
        self.pool.keep_ready(snapshot.machine());
        let function = Arc::new(function);
        let mut functions = self
            .functions
            .write()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        functions.insert(function.config.name.clone(), Arc::clone(&function));
        tracing::info!(function = %function.config.name, "created");
        Ok(function)
    }

    /// Code and layers must be there, and go with the runtime.
    fn check_images(&self, config: &FunctionConfig, code: Digest) -> Result<(), CreateError> {
        if !self.images.contains(&code) {
            return Err(CreateError::NoCode(code));
        }
        if self.images.kind(&code)? == Kind::Container {
            if !config.is_provided()? {
                let runtime = config.runtime.clone();
                return Err(CreateError::NotProvided { runtime });
            }
            if !config.layers.is_empty() {
                return Err(CreateError::LayersOfContainer);
            }
        }
        let missing = |layer: &&Digest| !self.images.contains(layer);
        match config.layers.iter().find(missing) {
            Some(layer) => Err(CreateError::NoLayer(*layer)),
            None => Ok(()),
        }
    }

    fn reserve(
        self: &Arc<Self>,
        config: &FunctionConfig,
        code: Digest,
    ) -> Result<Reservation, CreateError> {
        let name = &config.name;
        if !self.is_ready() {
            return Err(CreateError::Draining);
        }
        let mut creating = self.creating();
        if self.function(name).is_some() || creating.contains_key(name) {
            return Err(CreateError::Exists(name.clone()));
        }
        let count = self.list().len() + creating.len();
        if count >= self.config.limits.max_functions {
            return Err(CreateError::TooMany(count));
        }
        let mut images = config.layers.clone();
        images.push(code);
        creating.insert(name.clone(), images);
        Ok(Reservation {
            node: Arc::clone(self),
            name: name.clone(),
        })
    }

    /// The snapshot that a new one of these parts is stored as a diff of.
    pub(super) fn base_for(&self, parts: &Parts) -> Option<SnapshotId> {
        if !self.config.snapshots.diffs {
            return None;
        }
        let mut functions = self.list();
        functions.sort_by_key(|function| function.created_unix_ms);
        let candidates: Vec<_> = functions.iter().map(|f| f.snapshot.clone()).collect();
        self.catalogue.base_for(parts, &candidates)
    }

    fn register(&self, function: &Function) -> Result<(), CreateError> {
        self.store
            .add_function(function)
            .map_err(|error| match error {
                StoreError::Exists(_) => CreateError::Exists(function.config.name.clone()),
                error => error.into(),
            })
    }

    fn assets(&self, config: &FunctionConfig, code: Digest) -> Result<Assets, CreateError> {
        let open = |path: &Path| {
            let opened = File::open(path).and_then(|file| Ok((file, self.digests.of(path)?)));
            opened.map_err(|source| CreateError::Asset {
                path: path.to_owned(),
                source,
            })
        };
        let image = |path: PathBuf| {
            let (file, digest) = open(&path)?;
            Ok::<_, CreateError>((file, (path, digest)))
        };
        let (kernel, kernel_digest) = open(&self.asset("vmlinux"))?;
        let (initramfs, guest_init) = open(&self.asset("guest-init.cpio"))?;
        let (root_file, root_fs) =
            image(self.asset(&format!("rootfs/{}.erofs", config.root_fs()?)))?;
        let (code_file, code) = image(self.images.path(&code))?;
        Ok(Assets {
            kernel,
            initramfs,
            disks: vec![root_file, code_file],
            parts: Parts {
                function: config.name.clone(),
                machine: config.machine(),
                kernel: kernel_digest,
                guest_init,
                disks: Disks { root_fs, code },
                gathered: false,
            },
        })
    }

    async fn build(
        &self,
        config: &FunctionConfig,
        assets: Assets,
        draft: &Draft,
    ) -> Result<(Built, Parts), CreateError> {
        let input = BuildInput {
            init: config.init(),
            timeout: config.timeout(),
            machine: config.machine(),
            kernel: assets.kernel,
            initramfs: assets.initramfs,
            disks: assets.disks,
            state: draft.state_file()?,
        };
        let built = self
            .executor
            .build(input)
            .await
            .map_err(|source| CreateError::Build {
                function: config.name.clone(),
                source: Arc::new(source),
            })?;
        Ok((built, assets.parts))
    }
}
