//! The one processor of this host that a box runs on.
//!
//! QEMU emulates the box's processor in one thread and its devices and timers in
//! another. Both change the word of pending interrupts, and when the box enters or
//! leaves a guest of its own (`do_vmexit` in QEMU's `svm_helper.c`), the first of them does it
//! without a lock and not atomically. Side by side on two processors, they now and then
//! lose an interrupt; when it was the timer's, the box's kernel is never woken again, and
//! whatever spins at that moment – a guest that waits for another of its processors –
//! spins for ever. One instruction changes the word, so on one processor nothing
//! comes in between.

use std::fs::{self, File};

use anyhow::{Context, Result};
use rustix::thread::{CpuSet, sched_getaffinity};

use crate::cache::Cache;

/// A processor; no other box takes it while there is a free one.
pub struct Processor {
    number: usize,
    /// Held for its lock. Not there when every processor has a box.
    _lock: Option<File>,
}

impl Processor {
    /// A processor that this process may use.
    pub fn take(cache: &Cache) -> Result<Self> {
        let allowed =
            sched_getaffinity(None).context("cannot ask for this process's processors")?;
        let allowed: Vec<usize> = (0..CpuSet::MAX_CPU)
            .filter(|number| allowed.is_set(*number))
            .collect();
        let folder = cache.root().join("box-processors");
        fs::create_dir_all(&folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
        for &number in &allowed {
            let path = folder.join(number.to_string());
            let lock =
                File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
            if lock.try_lock().is_ok() {
                return Ok(Self {
                    number,
                    _lock: Some(lock),
                });
            }
        }
        // More boxes than processors: they share.
        let any = usize::try_from(std::process::id()).unwrap_or(0) % allowed.len().max(1);
        Ok(Self {
            number: allowed.get(any).copied().unwrap_or(0),
            _lock: None,
        })
    }

    /// Its number, as `taskset` takes it.
    pub fn number(&self) -> usize {
        self.number
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boxes_share_a_processor_only_when_there_is_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path()).unwrap();
        let allowed = sched_getaffinity(None).unwrap();
        let count = usize::try_from(allowed.count()).unwrap();
        let boxes: Vec<_> = (0..=count)
            .map(|_| Processor::take(&cache).unwrap())
            .collect();
        let mut numbers: Vec<_> = boxes[..count].iter().map(Processor::number).collect();
        numbers.dedup();
        assert_eq!(numbers.len(), count);
        for taken in &boxes {
            assert!(allowed.is_set(taken.number()), "{}", taken.number());
        }
        let first = boxes[0].number();
        drop(boxes);
        assert_eq!(Processor::take(&cache).unwrap().number(), first);
    }
}
