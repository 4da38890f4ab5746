//! guest-init: PID 1 of a Snapback microVM.
//!
//! ```text
//!  agent ◄── invocation channel (vsock) ──► guest-init ◄── Runtime API ──► runtime
//!                                            │    ▲         127.0.0.1:9001    │
//!                                          starts └──── stdout, stderr ◄──────┘
//! ```
//!
//! From boot to answer:
//!
//! 1. `main` lets [`mounts`] build the root (EROFS below, tmpfs above; the function's
//!    [`package`] in it), brings [`loopback`] up, gives up what nobody needs
//!    ([`privileges`]), hides and seals what is not the function's ([`sandbox`]),
//!    connects the [`channel`] and hands all of it to the [`guest`].
//! 2. `Init` arrives: vsock is closed for every process to come ([`seccomp`]), and
//!    [`process`] starts the runtime with the [`environment`] that
//!    Lambda would give it. Its output goes through [`logs`] to the channel.
//! 3. The runtime calls `invocation/next` or `restore/next` on the [`runtime_api`]
//!    ([`http`] underneath) and is parked there. `Ready` goes out; the snapshot is
//!    taken while the loop waits.
//! 4. In a restored guest `Resume` arrives: [`resume`] reseeds the generator, gives
//!    the machine its names ([`identity`]) and sets the clock, then confirms. `Invoke` follows and answers the parked call.
//! 5. The runtime posts its answer; all output that it wrote before goes out
//!    before it.
//!
//! One thread does everything, in an event loop ([`poller`]). What may happen when
//! is one table ([`runtime_api::state`]). `unsafe` is in [`sys`] alone. The guest
//! gets its channel, listener, layout and machine passed in: everything but the
//! mounts runs as an ordinary process, which is how the tests run it.

pub mod channel;
pub mod environment;
pub mod extensions;
pub mod gather;
pub mod guest;
pub mod http;
pub mod identity;
pub mod kernel_log;
pub mod logs;
pub mod loopback;
pub mod mounts;
pub mod output;
pub mod package;
pub mod poller;
pub mod privileges;
pub mod process;
pub mod resume;
pub mod runtime_api;
pub mod sandbox;
pub mod seccomp;
pub mod sys;
pub mod telemetry;

#[cfg(test)]
mod table;
