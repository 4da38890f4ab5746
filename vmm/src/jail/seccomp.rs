//! The policy as filters in the kernel.
//!
//! Two filters are installed; the kernel takes the stricter answer. The first kills
//! at whatever the policy does not list. The second answers "not implemented" to the
//! calls of [`policy::NOT_IMPLEMENTED`], whose arguments no filter can see and which
//! the C library and Rust's replace by ones that can be checked.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use super::Seccomp;
use super::policy::{self, Call, IOCTLS, Threads, When};
use crate::sys::jail as sys;

/// A filter could not be built or installed.
#[derive(Debug, thiserror::Error)]
pub enum SeccompError {
    /// The policy cannot be turned into a filter.
    #[error("the system-call policy cannot be turned into a filter")]
    Build(#[source] seccompiler::BackendError),
    /// The kernel did not take the filter.
    #[error("installing the system-call filter failed")]
    Install(#[source] seccompiler::Error),
}

/// Installs both filters for the whole process.
pub(super) fn install(mode: Seccomp) -> Result<(), SeccompError> {
    let Some(mismatch) = action(mode) else {
        return Ok(());
    };
    // A second heap would make the C library look for /proc when it shrinks.
    sys::use_one_heap();
    let refused = not_implemented()?;
    let allowed = allow_list(mismatch, |_| true)?;
    seccompiler::apply_filter_all_threads(&refused).map_err(SeccompError::Install)?;
    seccompiler::apply_filter_all_threads(&allowed).map_err(SeccompError::Install)
}

/// Installs a further filter for the calling thread.
pub(super) fn narrow_to_vcpu(mode: Seccomp) -> Result<(), SeccompError> {
    let Some(mismatch) = action(mode) else {
        return Ok(());
    };
    let filter = allow_list(mismatch, |call| call.threads == Threads::All)?;
    seccompiler::apply_filter(&filter).map_err(SeccompError::Install)
}

fn action(mode: Seccomp) -> Option<SeccompAction> {
    match mode {
        Seccomp::Off => None,
        Seccomp::Log => Some(SeccompAction::Log),
        Seccomp::Kill => Some(SeccompAction::KillProcess),
    }
}

fn allow_list(
    mismatch: SeccompAction,
    wanted: impl Fn(&Call) -> bool,
) -> Result<BpfProgram, SeccompError> {
    let mut rules = BTreeMap::new();
    for call in policy::CALLS.iter().filter(|call| wanted(call)) {
        rules.insert(call.number, rules_of(call.when)?);
    }
    compile(rules, mismatch, SeccompAction::Allow)
}

fn not_implemented() -> Result<BpfProgram, SeccompError> {
    let rules = policy::NOT_IMPLEMENTED
        .iter()
        .map(|(number, _)| (*number, Vec::new()))
        .collect();
    compile(
        rules,
        SeccompAction::Allow,
        SeccompAction::Errno(libc::ENOSYS.unsigned_abs()),
    )
}

fn compile(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    mismatch: SeccompAction,
    matched: SeccompAction,
) -> Result<BpfProgram, SeccompError> {
    SeccompFilter::new(rules, mismatch, matched, TargetArch::x86_64)
        .and_then(TryInto::try_into)
        .map_err(SeccompError::Build)
}

/// The rules of which one must match; none means always.
fn rules_of(when: When) -> Result<Vec<SeccompRule>, SeccompError> {
    let one_of = |argument, values: &mut dyn Iterator<Item = u64>| {
        values
            .map(|value| rule(argument, SeccompCmpOp::Eq, value))
            .collect()
    };
    match when {
        When::Always => Ok(Vec::new()),
        When::OneOf { argument, values } => one_of(argument, &mut values.iter().copied()),
        When::Without { argument, bits } => {
            Ok(vec![rule(argument, SeccompCmpOp::MaskedEq(bits), 0)?])
        }
        When::Null { argument } => Ok(vec![
            condition(argument, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, 0)
                .and_then(|condition| SeccompRule::new(vec![condition]))
                .map_err(SeccompError::Build)?,
        ]),
        When::OwnProcess { argument } => {
            let pid = u64::from(std::process::id());
            one_of(argument, &mut std::iter::once(pid))
        }
        When::Fcntl => {
            let mut rules = one_of(1, &mut policy::FCNTLS.iter().copied())?;
            let word = SeccompCmpArgLen::Dword;
            let command = u64::from(libc::F_SETFL.unsigned_abs());
            let flag = u64::from(libc::O_NONBLOCK.unsigned_abs());
            let conditions = [
                condition(1, word.clone(), SeccompCmpOp::Eq, command),
                condition(2, word, SeccompCmpOp::MaskedEq(flag), flag),
            ];
            let conditions = conditions.into_iter().collect::<Result<_, _>>();
            let rule = conditions.and_then(SeccompRule::new);
            rules.push(rule.map_err(SeccompError::Build)?);
            Ok(rules)
        }
        When::Ioctl => one_of(1, &mut IOCTLS.iter().map(|ioctl| u64::from(ioctl.number))),
    }
}

fn rule(argument: u8, operator: SeccompCmpOp, value: u64) -> Result<SeccompRule, SeccompError> {
    // The kernel takes these arguments as 32-bit numbers and ignores the rest.
    condition(argument, SeccompCmpArgLen::Dword, operator, value)
        .and_then(|condition| SeccompRule::new(vec![condition]))
        .map_err(SeccompError::Build)
}

fn condition(
    argument: u8,
    len: SeccompCmpArgLen,
    operator: SeccompCmpOp,
    value: u64,
) -> Result<SeccompCondition, seccompiler::BackendError> {
    SeccompCondition::new(argument, len, operator, value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_makes_filters_that_the_kernel_would_take() {
        let all = allow_list(SeccompAction::KillProcess, |_| true).unwrap();
        let vcpu = allow_list(SeccompAction::KillProcess, |call| {
            call.threads == Threads::All
        })
        .unwrap();
        // BPF_MAXINSNS
        assert!(vcpu.len() < all.len() && all.len() < 4096);
        assert!(not_implemented().unwrap().len() < 32);
    }
}
