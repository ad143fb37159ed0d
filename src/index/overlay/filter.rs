//! Which rows a layer may have.

/// Memory for a filter, in bits a row: few looks in a thousand are for nothing.
const BITS: usize = 16;
/// Bits that a row sets, all within one cache line.
const PROBES: u32 = 7;

/// A Bloom filter in blocks of one cache line.
#[derive(Clone, Debug)]
pub(super) struct Filter(Vec<[u64; 8]>);

impl Filter {
    pub(super) fn of(rows: impl ExactSizeIterator<Item = u64>) -> Self {
        let mut filter = Self::for_rows(rows.len());
        rows.for_each(|hash| filter.add(hash));
        filter
    }

    /// Without a row, and with room for so many: of more, more looks are for nothing.
    pub(super) fn for_rows(rows: usize) -> Self {
        Self(vec![[0; 8]; (rows * BITS).div_ceil(512).max(1)])
    }

    pub(super) fn add(&mut self, hash: u64) {
        let at = self.line(hash);
        for bit in bits(hash) {
            self.0[at][bit / 64] |= 1 << (bit % 64);
        }
    }

    pub(super) fn may_have(&self, hash: u64) -> bool {
        let line = &self.0[self.line(hash)];
        bits(hash).all(|bit| line[bit / 64] & (1 << (bit % 64)) != 0)
    }

    fn line(&self, hash: u64) -> usize {
        (((hash >> 32) * self.0.len() as u64) >> 32) as usize
    }
}

/// Which bits of its line a key sets.
fn bits(hash: u64) -> impl Iterator<Item = usize> {
    let mixed = (hash as u32 as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mixed = mixed ^ (mixed >> 29);
    (0..PROBES).map(move |probe| (mixed >> (9 * probe)) as usize & 511)
}

/// Spreads keys well enough for a filter. Whoever makes them collide makes looks for nothing, no
/// wrong answers.
pub(super) fn hash(key: &[u8]) -> u64 {
    const FACTOR: u64 = 0xa076_1d64_78bd_642f;
    let fold = |hash: u64, word: u64| {
        let product = u128::from(hash ^ word) * u128::from(FACTOR);
        product as u64 ^ (product >> 64) as u64
    };
    let (words, rest) = key.as_chunks::<8>();
    let whole = words.iter().fold(!(key.len() as u64), |hash, word| fold(hash, u64::from_le_bytes(*word)));
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    fold(fold(whole, u64::from_le_bytes(last)), FACTOR)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_has_all_its_rows_and_few_others() {
        let hashes: Vec<u64> =
            (0..20_000).map(|number| hash(format!("team/app {number:06}").as_bytes())).collect();
        let (inside, outside) = hashes.split_at(10_000);
        let filter = Filter::of(inside.iter().copied());
        assert!(inside.iter().all(|hash| filter.may_have(*hash)));
        let wrong = outside.iter().filter(|hash| filter.may_have(**hash)).count();
        assert!(wrong < 60, "{wrong} of 10000");
    }

    #[test]
    fn every_byte_of_a_key_counts() {
        let key = b"team/app\0 and more";
        for at in 0..key.len() {
            let mut other = *key;
            other[at] ^= 1;
            assert_ne!(hash(key), hash(&other), "{at}");
        }
        assert_ne!(hash(b"a"), hash(b"a\0"));
    }
}
