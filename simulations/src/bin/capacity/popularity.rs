//! How much of what is pulled a site already has: images differ in popularity as Zipf says, and a
//! site that copies nothing ahead keeps what was pulled last.

use std::collections::BTreeMap;

use crate::random::Random;

/// Images whose popularity falls with their rank to the power of an exponent.
#[derive(Clone, Debug)]
pub(crate) struct Zipf {
    /// Share of pulls of each image and of all more popular ones.
    cumulative: Vec<f64>,
}

impl Zipf {
    pub(crate) fn new(images: usize, exponent: f64) -> Self {
        let weights: Vec<f64> = (1..=images).map(|rank| (rank as f64).powf(-exponent)).collect();
        let total: f64 = weights.iter().sum();
        let cumulative = weights.iter().scan(0.0, |sum, weight| {
            *sum += weight / total;
            Some(*sum)
        });
        Self { cumulative: cumulative.collect() }
    }

    fn draw(&self, random: &mut Random) -> usize {
        let at = random.unit();
        self.cumulative.partition_point(|share| *share <= at).min(self.cumulative.len().saturating_sub(1))
    }

    fn shares(&self) -> impl Iterator<Item = f64> {
        let before = std::iter::once(&0.0).chain(&self.cumulative);
        self.cumulative.iter().zip(before).map(|(upto, before)| upto - before)
    }

    /// Share of pulls that find their image among the `kept` pulled last, by simulation; the first
    /// half of the pulls only warms up.
    pub(crate) fn hits(&self, kept: usize, pulls: usize, random: &mut Random) -> f64 {
        let mut last_pull: Vec<Option<usize>> = vec![None; self.cumulative.len()];
        let mut by_age = BTreeMap::new();
        let mut hits = 0;
        for pull in 0..pulls {
            let image = self.draw(random);
            let Some(last) = last_pull.get_mut(image) else { continue };
            match last.replace(pull).and_then(|at| by_age.remove(&at)) {
                Some(_) => hits += usize::from(pull >= pulls / 2),
                None if by_age.len() >= kept => {
                    if let Some((_, oldest)) = by_age.pop_first()
                        && let Some(last) = last_pull.get_mut(oldest)
                    {
                        *last = None;
                    }
                }
                None => {}
            }
            by_age.insert(pull, image);
        }
        hits as f64 / (pulls - pulls / 2) as f64
    }

    /// The same by Che's approximation (Che, Tung, Wang 2002): an image stays for a time that is the
    /// same for all.
    pub(crate) fn hits_by_che(&self, kept: usize) -> f64 {
        if kept >= self.cumulative.len() {
            return 1.0;
        }
        let held = |time: f64| self.shares().map(|share| -(-share * time).exp_m1()).sum::<f64>();
        let (mut low, mut high) = (0.0, 1.0);
        while held(high) < kept as f64 {
            high *= 2.0;
        }
        for _ in 0..60 {
            let middle = (low + high) / 2.0;
            if held(middle) < kept as f64 { low = middle } else { high = middle }
        }
        self.shares().map(|share| share * -(-share * high).exp_m1()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hits_are_those_of_che_and_all_of_them_when_everything_is_kept() {
        for exponent in [0.7, 1.1] {
            let zipf = Zipf::new(2000, exponent);
            for kept in [20, 200, 1000] {
                let (seen, theory) = (zipf.hits(kept, 200_000, &mut Random::new(3)), zipf.hits_by_che(kept));
                assert!((seen - theory).abs() < 0.02, "{exponent}, {kept}: {seen} instead of {theory}");
            }
            assert_eq!(zipf.hits_by_che(2000), 1.0);
            assert!(zipf.hits(2000, 200_000, &mut Random::new(3)) > 0.98);
        }
    }
}
