//! Which clusters of a scratch disk are the machine's own.
//!
//! Two bits for each cluster, in chunks that exist only where something differs from
//! the base: forgetting everything costs as much as was written, not as the disk is
//! large, and a guest can make the map no larger than its disk allows.

use std::collections::BTreeMap;
use std::ops::Range;

/// Bytes of a cluster: what a file system in the guest writes at once, and what the
/// overlay's file system allocates. So writes hardly ever have to read, and a hole
/// frees what a cluster took.
pub(super) const CLUSTER: u64 = 4096;
/// Clusters of a chunk: 2 MiB of disk in 128 bytes.
const CHUNK: u64 = 512;
const WORDS: usize = 8;

const _: () = assert!(CHUNK == 64 * WORDS as u64);

/// Where a cluster's content is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cluster {
    /// In the base: it was not changed.
    Base,
    /// Nowhere: it is zero, and a hole in the overlay.
    Zero,
    /// In the overlay.
    Data,
}

#[derive(Debug, Clone, Copy, Default)]
struct Chunk {
    /// Bit set: not in the base.
    own: [u64; WORDS],
    /// Bit set: takes up space in the overlay.
    data: [u64; WORDS],
}

/// The map of one disk.
#[derive(Debug, Default)]
pub(super) struct ClusterMap {
    chunks: BTreeMap<u64, Chunk>,
    own: u64,
    data: u64,
}

impl ClusterMap {
    /// Clusters that are not in the base.
    pub(super) fn own(&self) -> u64 {
        self.own
    }

    /// Clusters that take up space in the overlay.
    pub(super) fn data(&self) -> u64 {
        self.data
    }

    pub(super) fn get(&self, cluster: u64) -> Cluster {
        let Some(chunk) = self.chunks.get(&(cluster / CHUNK)) else {
            return Cluster::Base;
        };
        let (word, bit) = place(cluster % CHUNK);
        let is_set = |words: &[u64; WORDS]| words.get(word).is_some_and(|w| w & bit != 0);
        match (is_set(&chunk.own), is_set(&chunk.data)) {
            (false, _) => Cluster::Base,
            (true, false) => Cluster::Zero,
            (true, true) => Cluster::Data,
        }
    }

    /// The first cluster after `from` and before `end` whose content is in another
    /// file than that of `from`, or `end`.
    pub(super) fn end_of_run(&self, from: u64, end: u64) -> u64 {
        let in_base = |cluster| self.get(cluster) == Cluster::Base;
        let here = in_base(from);
        (from..end)
            .find(|cluster| in_base(*cluster) != here)
            .unwrap_or(end)
    }

    /// Clusters among `clusters` that take up no space yet.
    pub(super) fn without_data(&self, clusters: Range<u64>) -> u64 {
        let all = clusters.end.saturating_sub(clusters.start);
        let with_data: u64 = self
            .chunks
            .range(clusters.start / CHUNK..clusters.end.div_ceil(CHUNK))
            .map(|(number, chunk)| {
                let words = (0..).zip(&chunk.data);
                words
                    .map(|(word, bits)| count(bits & mask(&clusters, *number, word)))
                    .sum::<u64>()
            })
            .sum();
        all - with_data
    }

    /// Notes that `clusters` are zero or in the overlay. To the base they only
    /// return all together, with [`ClusterMap::clear`].
    pub(super) fn set(&mut self, clusters: Range<u64>, has_data: bool) {
        for number in clusters.start / CHUNK..clusters.end.div_ceil(CHUNK) {
            let chunk = self.chunks.entry(number).or_default();
            for (word, (own, data)) in (0..).zip(chunk.own.iter_mut().zip(&mut chunk.data)) {
                let bits = mask(&clusters, number, word);
                self.own += count(bits & !*own);
                *own |= bits;
                if has_data {
                    self.data += count(bits & !*data);
                    *data |= bits;
                } else {
                    self.data -= count(bits & *data);
                    *data &= !bits;
                }
            }
        }
    }

    /// Everything is in the base again.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

/// Word and bit of a cluster in its chunk.
fn place(cluster: u64) -> (usize, u64) {
    let word = usize::try_from(cluster / 64).unwrap_or(usize::MAX);
    (word, 1 << (cluster % 64))
}

/// The bits of `clusters` in a word of a chunk.
fn mask(clusters: &Range<u64>, chunk: u64, word: u64) -> u64 {
    let first = chunk * CHUNK + word * 64;
    let below = |end: u64| match end.saturating_sub(first) {
        bits @ 0..64 => (1 << bits) - 1,
        _ => u64::MAX,
    };
    below(clusters.end) & !below(clusters.start)
}

fn count(bits: u64) -> u64 {
    u64::from(bits.count_ones())
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::cast_possible_truncation,
        reason = "tests choose their own numbers"
    )]

    use proptest::prelude::*;

    use super::*;

    const CLUSTERS: u64 = 1500;

    proptest! {
        #[test]
        fn the_map_is_one_of_clusters(
            steps in proptest::collection::vec((0..CLUSTERS, 0..CLUSTERS, any::<bool>()), 0..20),
            asked in (0..CLUSTERS, 0..CLUSTERS),
        ) {
            let mut map = ClusterMap::default();
            let mut model = vec![Cluster::Base; CLUSTERS as usize];
            for (a, b, has_data) in steps {
                let range = a.min(b)..a.max(b);
                map.set(range.clone(), has_data);
                let kind = if has_data { Cluster::Data } else { Cluster::Zero };
                model[range.start as usize..range.end as usize].fill(kind);
            }
            let (from, end) = (asked.0.min(asked.1), asked.0.max(asked.1));
            let part = &model[from as usize..end as usize];
            let number = |count: usize| count as u64;
            for (cluster, kind) in (0..).zip(&model) {
                prop_assert_eq!(map.get(cluster), *kind);
            }
            let data = |kinds: &[Cluster]| number(kinds.iter().filter(|k| **k == Cluster::Data).count());
            let base = number(model.iter().filter(|k| **k == Cluster::Base).count());
            prop_assert_eq!(map.data(), data(&model));
            prop_assert_eq!(map.own(), CLUSTERS - base);
            prop_assert_eq!(map.without_data(from..end), end - from - data(part));
            let same = |k: &&Cluster| (**k == Cluster::Base) == (part[0] == Cluster::Base);
            prop_assert_eq!(map.end_of_run(from, end), from + number(part.iter().take_while(same).count()));
            map.clear();
            prop_assert_eq!((map.own(), map.data(), map.get(from)), (0, 0, Cluster::Base));
        }
    }
}
