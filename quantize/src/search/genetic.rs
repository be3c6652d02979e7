//! The search itself.

use super::{Budget, Candidate, Found, SearchError, SearchOptions, Space};
use crate::random::Random;
use std::collections::HashMap;

/// Candidates that live at once, and children of a generation: half mutants, half crossovers.
const POPULATION: usize = 64;
const CHILDREN: usize = 32;

/// Probability that a layer changes in a mutant.
const MUTATION: f32 = 0.1;

/// Of so many candidates one is judged well at the end, at most [`FINALISTS`], and the best of one width.
const TO_A_FINALIST: usize = 40;
const FINALISTS: usize = 10;

/// Prices of a byte that the first candidates are best at.
const PRICES: usize = 48;

/// What `progress` is told.
#[derive(Clone, Copy, Debug)]
pub struct State<'s> {
    /// Candidates that were run.
    pub runs: usize,
    /// Of so many.
    pub of: usize,
    /// The best so far that is within the budget.
    pub best: Option<&'s Candidate>,
    known: &'s HashMap<Vec<u8>, Candidate>,
}

impl State<'_> {
    /// Candidates so far that no other beats in both bytes and error, the smallest first.
    pub fn front(&self) -> Vec<Candidate> {
        front(self.known.values())
    }
}

/// Searches the space; equal seeds find the same.
pub fn search(
    space: &Space<'_>,
    budget: &Budget,
    options: &SearchOptions,
    progress: &mut dyn FnMut(State<'_>),
) -> Result<Found, SearchError> {
    if budget.accuracy.is_some() && !space.has_labels() {
        return Err(SearchError::NoLabels);
    }
    if budget.instructions.is_some() && (space.base_instructions.is_none() || !space.uncounted.is_empty()) {
        return Err(SearchError::NoCosts(space.uncounted.clone()));
    }
    let mut run = Run { space, budget, known: HashMap::new(), order: Vec::new(), of: options.candidates, progress };
    let widest: Vec<u8> = space.layers.iter().map(|l| l.bits[0]).collect();
    let widths: usize = space.layers.iter().map(|l| l.bits.len() - 1).sum();
    let uniform: Vec<Candidate> =
        space.widths().into_iter().map(|bits| run.judge(&space.uniform(bits))).collect::<Result<_, _>>()?;
    // Errors of single layers come first, whatever they take.
    let finalists = (options.candidates / TO_A_FINALIST).clamp(1, FINALISTS);
    run.of = run.of.max(run.order.len() + widths + PRICES) + finalists + 1;
    let alone = run.alone(&widest)?;
    for price in 0..PRICES {
        let bits = run.cheapest(&alone, price);
        run.judge(&bits)?;
    }
    // With a budget, what is best without one is repaired.
    let mut random = Random::new(options.seed, 0);
    let seeds: Vec<Vec<u8>> = run.order.clone();
    for bits in seeds {
        let repaired = run.repaired(bits, &alone, &mut random);
        run.judge(&repaired)?;
    }
    let mut idle = 0;
    while run.order.len() < options.candidates && idle < 50 {
        let before = run.order.len();
        let parents = run.parents();
        for child in 0..CHILDREN {
            let pick = |random: &mut Random| &parents[random.below(parents.len())];
            let mut bits = pick(&mut random).clone();
            match child % 2 {
                0 => mutate(space, &mut bits, &mut random),
                _ => {
                    let other = pick(&mut random);
                    bits.iter_mut().zip(other).filter(|_| random.below(2) == 0).for_each(|(own, &b)| *own = b);
                }
            }
            let bits = run.repaired(bits, &alone, &mut random);
            run.judge(&bits)?;
        }
        idle = if run.order.len() == before { idle + 1 } else { 0 };
    }
    let mut best: Option<Candidate> = None;
    let finalists = run.finalists(finalists, &uniform);
    for (i, bits) in finalists.iter().enumerate() {
        let found = space.judge_well(bits)?;
        if rank(&found, budget).0 == 0.0 && best.as_ref().is_none_or(|best| rank(&found, budget) < rank(best, budget)) {
            best = Some(found);
        }
        let state =
            State { runs: run.of - finalists.len() + i + 1, of: run.of, best: best.as_ref(), known: &run.known };
        (run.progress)(state);
    }
    Ok(Found { best, front: front(run.known.values()), uniform, runs: run.order.len() })
}

fn mutate(space: &Space<'_>, bits: &mut [u8], random: &mut Random) {
    let forced = random.below(bits.len());
    for (i, (bits, layer)) in bits.iter_mut().zip(&space.layers).enumerate() {
        if i == forced || random.uniform() < MUTATION {
            *bits = layer.bits[random.below(layer.bits.len())];
        }
    }
}

/// Errors that single layers add at each of their widths.
type Alone = Vec<Vec<f64>>;

struct Run<'s, 'a> {
    space: &'s Space<'a>,
    budget: &'s Budget,
    known: HashMap<Vec<u8>, Candidate>,
    /// In the order in which they were run.
    order: Vec<Vec<u8>>,
    of: usize,
    progress: &'s mut dyn FnMut(State<'_>),
}

impl Run<'_, '_> {
    fn judge(&mut self, bits: &[u8]) -> Result<Candidate, SearchError> {
        if let Some(known) = self.known.get(bits) {
            return Ok(known.clone());
        }
        let found = self.space.judge(bits)?;
        self.known.insert(bits.to_vec(), found.clone());
        self.order.push(bits.to_vec());
        let best = best_of(self.known.values(), self.budget);
        (self.progress)(State { runs: self.order.len(), of: self.of, best, known: &self.known });
        Ok(found)
    }

    fn alone(&mut self, widest: &[u8]) -> Result<Alone, SearchError> {
        let all = self.judge(widest)?.error;
        let mut alone = Vec::new();
        for (i, layer) in self.space.layers.iter().enumerate() {
            let mut errors = Vec::new();
            for &b in &layer.bits {
                let mut bits = widest.to_vec();
                bits[i] = b;
                errors.push((self.judge(&bits)?.error - all).max(0.0));
            }
            alone.push(errors);
        }
        Ok(alone)
    }

    /// The widths with the least sum of errors and of bytes at a price.
    fn cheapest(&self, alone: &Alone, price: usize) -> Vec<u8> {
        // From a hundred-millionth of the energy for a kilobyte to all of it.
        let price = 10f64.powf(-8.0 + 8.0 * price as f64 / (PRICES - 1) as f64) / 1024.0;
        let of = |(layer, errors): (&super::Layer, &Vec<f64>)| {
            let cost = |i: usize| errors[i] + price * layer.bytes[i] as f64;
            let best = (0..layer.bits.len()).min_by(|&a, &b| cost(a).total_cmp(&cost(b)));
            layer.bits[best.unwrap_or(0)]
        };
        self.space.layers.iter().zip(alone).map(of).collect()
    }

    /// Within the budgets of bytes and instructions, if that is possible: layers get narrower where relief costs least, with some chance, then wider
    /// where there is room.
    fn repaired(&self, mut bits: Vec<u8>, alone: &Alone, random: &mut Random) -> Vec<u8> {
        if self.budget.flash.is_none() && self.budget.instructions.is_none() {
            return bits;
        }
        let layers = &self.space.layers;
        let pressure = |bits: &[u8]| excess(self.space.flash(bits), self.space.instructions(bits), self.budget);
        let error = |i: usize, bits: u8| alone[i][layers[i].bits.iter().position(|&b| b == bits).unwrap_or(0)];
        let with = |bits: &[u8], i: usize, to: u8| {
            let mut changed = bits.to_vec();
            changed[i] = to;
            changed
        };
        // Every other choice for a single layer.
        let steps = |bits: &[u8]| -> Vec<(usize, u8)> {
            let of = |i: usize| layers[i].bits.iter().map(move |&to| (i, to));
            (0..layers.len()).flat_map(of).filter(|&(i, to)| to != bits[i]).collect()
        };
        loop {
            let now = pressure(&bits);
            if now == 0.0 {
                break;
            }
            let price = |(i, to): (usize, u8), random: &mut Random| {
                let relief = now - pressure(&with(&bits, i, to));
                let lost = (error(i, to) - error(i, bits[i])).max(1e-12);
                (relief > 0.0).then(|| (lost / relief * f64::from(0.5 + random.uniform()), i, to))
            };
            let all: Vec<_> = steps(&bits).into_iter().filter_map(|step| price(step, random)).collect();
            match all.iter().min_by(|a, b| a.0.total_cmp(&b.0)) {
                Some(&(_, i, to)) => bits[i] = to,
                None => return bits,
            }
        }
        loop {
            let gain = |(i, to): (usize, u8)| {
                let is_wider = to > bits[i] && pressure(&with(&bits, i, to)) == 0.0;
                is_wider.then(|| (error(i, bits[i]) - error(i, to), i, to))
            };
            let all: Vec<_> = steps(&bits).into_iter().filter_map(gain).collect();
            match all.iter().max_by(|a, b| a.0.total_cmp(&b.0)) {
                Some(&(_, i, to)) => bits[i] = to,
                None => return bits,
            }
        }
    }

    /// The best quarter of those that live.
    fn parents(&self) -> Vec<Vec<u8>> {
        let mut all: Vec<&Candidate> = self.order.iter().map(|bits| &self.known[bits]).collect();
        all.sort_by(|a, b| {
            rank(a, self.budget).partial_cmp(&rank(b, self.budget)).unwrap_or(std::cmp::Ordering::Equal)
        });
        all.into_iter().take(POPULATION / 4).map(|c| c.bits.clone()).collect()
    }

    /// The best within the budgets of bytes and instructions; an accuracy may be reached by the way they are built. The best of one width is among them, so
    /// that what is found is no worse.
    fn finalists(&self, count: usize, uniform: &[Candidate]) -> Vec<Vec<u8>> {
        let budget = Budget { accuracy: None, ..*self.budget };
        // Where an accuracy is wanted, those that are nearest to it, in steps of two points, with the fewest bytes.
        let order = |c: &Candidate| {
            let (missed, ..) = rank(c, self.budget);
            let rounds = |v: f64| (50.0 * v).round();
            (rounds(missed), rank(c, self.budget).1, c.error)
        };
        let best_first = |all: Vec<&Candidate>| -> Vec<Vec<u8>> {
            let mut all: Vec<&Candidate> = all.into_iter().filter(|c| rank(c, &budget).0 == 0.0).collect();
            all.sort_by(|a, b| order(a).partial_cmp(&order(b)).unwrap_or(std::cmp::Ordering::Equal));
            all.into_iter().map(|c| c.bits.clone()).collect()
        };
        let mut best = best_first(self.order.iter().map(|bits| &self.known[bits]).collect());
        best.truncate(count);
        let alike = best_first(uniform.iter().collect()).into_iter().next();
        best.extend(alike.filter(|bits| !best.contains(bits)));
        best
    }
}

/// Candidates that no other beats in both bytes and error, the smallest first.
fn front<'c>(all: impl Iterator<Item = &'c Candidate>) -> Vec<Candidate> {
    let mut all: Vec<&Candidate> = all.collect();
    // A set has no order of its own.
    all.sort_by(|a, b| a.flash.cmp(&b.flash).then(a.error.total_cmp(&b.error)).then(a.bits.cmp(&b.bits)));
    let mut front: Vec<Candidate> = Vec::new();
    for c in all {
        if front.last().is_none_or(|last| c.error < last.error) {
            front.push(c.clone());
        }
    }
    front
}

fn best_of<'c>(all: impl Iterator<Item = &'c Candidate>, budget: &Budget) -> Option<&'c Candidate> {
    let within = all.filter(|c| rank(c, budget).0 == 0.0);
    within.min_by(|a, b| {
        let order = rank(a, budget).partial_cmp(&rank(b, budget)).unwrap_or(std::cmp::Ordering::Equal);
        // A set has no order of its own.
        order.then(a.bits.cmp(&b.bits))
    })
}

/// Sum of the shares by which budgets are exceeded.
fn excess(flash: u64, instructions: Option<u64>, budget: &Budget) -> f64 {
    let over =
        |value: u64, limit: Option<u64>| limit.map_or(0.0, |limit| (value as f64 / limit.max(1) as f64 - 1.0).max(0.0));
    over(flash, budget.flash) + over(instructions.unwrap_or(0), budget.instructions)
}

/// By how much budgets are missed; then the error, or the bytes where the accuracy is given; then the other.
fn rank(c: &Candidate, budget: &Budget) -> (f64, f64, f64) {
    let missed = excess(c.flash, c.instructions, budget)
        + budget.accuracy.map_or(0.0, |least| (least - c.accuracy.unwrap_or(0.0)).max(0.0));
    match budget.accuracy {
        Some(_) => (missed, c.flash as f64, c.error),
        None => (missed, c.error, c.flash as f64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::Recipe;
    use crate::search::{Judge, Layer};

    /// Errors by two formulas: for the many, and for the few.
    #[derive(Debug)]
    struct Formulas {
        quick: fn(&[u8]) -> f64,
        well: fn(&[u8]) -> f64,
    }

    impl Judge for Formulas {
        fn judge(&self, bits: &[u8]) -> Result<(f64, Option<f64>), SearchError> {
            Ok(((self.quick)(bits), None))
        }

        fn judge_well(&self, bits: &[u8]) -> Result<(f64, Option<f64>), SearchError> {
            Ok(((self.well)(bits), None))
        }

        fn recipe(&self, _: &[u8], recipe: &Recipe) -> Recipe {
            recipe.clone()
        }

        fn has_labels(&self) -> bool {
            false
        }

        fn is_predicted(&self) -> bool {
            true
        }
    }

    const WEIGHTS: [usize; 6] = [900, 400, 100, 1600, 300, 500];

    fn space<'a>(quick: fn(&[u8]) -> f64, well: fn(&[u8]) -> f64) -> Space<'a> {
        let layer = |weights: usize| {
            let mut layer = Layer::new("", weights, vec![8, 4, 3, 2]);
            layer.bytes = layer.bits.iter().map(|&bits| weights as u64 * u64::from(bits) / 8).collect();
            layer.instructions = vec![0.0; 4];
            layer
        };
        Space::of(WEIGHTS.map(layer).into(), Box::new(Formulas { quick, well }))
    }

    /// Every layer loses on its own, and two of them more together.
    fn uneven(bits: &[u8]) -> f64 {
        let lost = |bits: u8| 4f64.powi(-i32::from(bits));
        let each: f64 = bits.iter().zip([3.0, 1.0, 20.0, 0.5, 2.0, 1.0]).map(|(&b, factor)| factor * lost(b)).sum();
        each + (8.0 * lost(bits[0]) * lost(bits[4])).sqrt()
    }

    #[test]
    fn the_best_of_all_within_a_budget_is_found() {
        let space = space(uneven, uneven);
        for flash in [1100, 1400, 2000] {
            let budget = Budget { flash: Some(flash), ..Budget::default() };
            let found = search(&space, &budget, &SearchOptions::default(), &mut |_| ()).unwrap().best.unwrap();
            let all = (0..4096usize).map(|i| (0..6).map(|k| [8, 4, 3, 2][i >> (2 * k) & 3]).collect::<Vec<u8>>());
            let within = all.filter(|bits| space.flash(bits) <= flash);
            let best = within.min_by(|a, b| uneven(a).total_cmp(&uneven(b))).unwrap();
            assert!(found.flash <= flash);
            assert!(found.error <= 1.02 * uneven(&best), "{found:?}, where {best:?} has {}", uneven(&best));
        }
    }

    /// However wrong predictions are.
    #[test]
    fn what_is_found_is_no_worse_than_one_width() {
        fn spread(bits: &[u8]) -> f64 {
            f64::from(bits.iter().max().unwrap() - bits.iter().min().unwrap())
        }
        let space = space(|bits| 1.0 - 0.1 * spread(bits), spread);
        let budget = Budget { flash: Some(space.flash(&[3; 6])), ..Budget::default() };
        let found = search(&space, &budget, &SearchOptions::default(), &mut |_| ()).unwrap().best.unwrap();
        assert_eq!(spread(&found.bits), 0.0, "{found:?}");
    }
}
