//! Random circuits against sums over all assignments.

use super::codec::{CodecError, Coded};
use super::em::{self, Schedule};
use super::evaluate::{Batch, Workspace, bits_per_dimension, flows, log_likelihoods, total_log_likelihood};
use super::hclt::{Leaves, hclt};
use super::inputs::{Family, Inputs};
use super::sample::sample;
use super::sparsify::{grow, prune, prune_units};
use super::{Circuit, Data, Region, checkpoint, chow_liu, cost, stride};
use crate::random::Random;
use pith::circuit::rans64::MAX_BITS;
use pith::circuit::tree::Tree;

/// A random tree of regions with one to five units each, some of them without a variable, some edges absent, variables of one to four values.
fn random_circuit(random: &mut Random, variables: usize) -> Circuit {
    let mut circuit = Circuit { variables, regions: Vec::new() };
    let mut names: Vec<usize> = (0..variables).collect();
    random.shuffle(&mut names);
    subtree(random, &names, 1, &mut circuit.regions);
    circuit.check().unwrap();
    circuit
}

fn subtree(random: &mut Random, variables: &[usize], above: usize, regions: &mut Vec<Region>) {
    let first = regions.len();
    let units = 1 + random.below(5);
    let joins = variables.len() > 1 && random.below(4) == 0;
    let (own, rest) = if joins { (None, variables) } else { (Some(variables[0]), &variables[1..]) };
    let parts = if rest.is_empty() { 0 } else { 1 + random.below(rest.len().min(3)) };
    let parts = if joins { parts.max(2) } else { parts };
    for part in 0..parts {
        let share = |i: usize| rest.len() * i / parts;
        subtree(random, &rest[share(part)..share(part + 1)], units, regions);
    }
    let shares = |random: &mut Random, n: usize| -> Vec<f32> {
        let raw: Vec<f32> =
            (0..n).map(|i| if i > 0 && random.below(4) == 0 { 0.0 } else { random.uniform() + 0.01 }).collect();
        raw.iter().map(|x| x / raw.iter().sum::<f32>()).collect()
    };
    let stride = stride(units);
    let mut weights = vec![0.0; above * stride];
    weights.chunks_exact_mut(stride).for_each(|row| row[..units].copy_from_slice(&shares(random, units)));
    let values = if own.is_some() { 1 + random.below(4) } else { 0 };
    let mut table = vec![0.0; values * stride];
    for unit in 0..units {
        shares(random, values).iter().enumerate().for_each(|(v, &p)| table[v * stride + unit] = p);
    }
    let size = regions.len() + 1 - first;
    regions.push(Region { variable: own, units, above, size, inputs: Inputs::Categorical, table, weights });
}

/// The definition, with 64-bit floats; `None` is an unknown value.
fn probability(circuit: &Circuit, sample: &[Option<u8>]) -> f64 {
    fn sums(circuit: &Circuit, index: usize, sample: &[Option<u8>]) -> Vec<f64> {
        let region = &circuit.regions[index];
        let input = |j: usize| match region.variable.and_then(|v| sample[v]) {
            Some(x) => region.table.get(x as usize * region.stride() + j).map_or(0.0, |&p| p as f64),
            None => 1.0,
        };
        let mut values: Vec<f64> = (0..region.units).map(input).collect();
        for child in circuit.children(index) {
            values.iter_mut().zip(sums(circuit, child, sample)).for_each(|(v, s)| *v *= s);
        }
        let rows = region.weights.chunks_exact(region.stride());
        rows.map(|row| row.iter().zip(&values).map(|(&w, v)| w as f64 * v).sum()).collect()
    }
    sums(circuit, circuit.regions.len() - 1, sample)[0]
}

fn known(row: &[u8]) -> Vec<Option<u8>> {
    row.iter().map(|&x| Some(x)).collect()
}

/// All assignments of up to four values, also those that a variable does not have.
fn assignments(variables: usize) -> Data {
    let rows = (0..4usize.pow(variables as u32)).flat_map(|i| (0..variables).map(move |v| (i >> (2 * v) & 3) as u8));
    Data::new(rows.collect(), variables)
}

fn batch(data: &Data) -> Batch {
    Batch::gather(data, &(0..data.samples() as u32).collect::<Vec<_>>())
}

#[test]
fn all_assignments_sum_to_one_and_agree_with_the_definition() {
    let mut random = Random::new(1, 0);
    for round in 0..60 {
        let circuit = random_circuit(&mut random, 1 + round % 6);
        let data = assignments(circuit.variables);
        let found = log_likelihoods(&circuit, &mut Workspace::default(), &batch(&data));
        let mut sum = 0.0;
        for (row, log) in data.values.chunks(circuit.variables).zip(found) {
            let expected = probability(&circuit, &known(row));
            assert!((log.exp() - expected).abs() < 1e-6, "{} {expected}", log.exp());
            sum += log.exp();
        }
        assert!((sum - 1.0).abs() < 1e-5, "{sum}");
    }
}

#[test]
fn unknown_values_are_summed_over() {
    let mut random = Random::new(2, 0);
    for round in 0..40 {
        let circuit = random_circuit(&mut random, 1 + round % 7);
        let mut data = sample(&circuit, 30, round as u64);
        data.missing = Some(data.values.iter().map(|_| random.below(3) == 0).collect());
        let found = log_likelihoods(&circuit, &mut Workspace::default(), &batch(&data));
        let missing = data.missing.as_ref().unwrap().chunks(circuit.variables);
        for ((row, missing), log) in data.values.chunks(circuit.variables).zip(missing).zip(found) {
            let partial: Vec<_> = row.iter().zip(missing).map(|(&x, &m)| (!m).then_some(x)).collect();
            assert!((log.exp() / probability(&circuit, &partial) - 1.0).abs() < 1e-4);
        }
    }
}

/// `flow = weight * d log p / d weight`, by differences.
#[test]
fn flows_are_derivatives() {
    let mut random = Random::new(3, 0);
    for round in 0..20 {
        let circuit = random_circuit(&mut random, 2 + round % 4);
        let data = sample(&circuit, 1, round as u64);
        let found = std::sync::Mutex::new(vec![Vec::new(); circuit.regions.len()]);
        let gather =
            |index: usize, _: &mut Region, flow: super::evaluate::Flow| found.lock().unwrap()[index] = flow.edges;
        flows(&mut circuit.clone(), &mut Workspace::default(), &batch(&data), &gather);
        let row = known(&data.values);
        for (index, flow) in found.into_inner().unwrap().into_iter().enumerate() {
            for (edge, flow) in flow.into_iter().enumerate() {
                let weight = circuit.regions[index].weights[edge];
                let with = |factor: f32| {
                    let mut changed = circuit.clone();
                    changed.regions[index].weights[edge] = weight * factor;
                    probability(&changed, &row)
                };
                let expected = (with(1.25) - with(0.75)) / (0.5 * with(1.0));
                assert!((flow as f64 - expected).abs() < 1e-4, "{flow} {expected}");
            }
        }
    }
}

#[test]
fn em_never_lowers_the_likelihood() {
    let mut random = Random::new(4, 0);
    for round in 0..12u64 {
        let truth = random_circuit(&mut random, 5);
        let data = sample(&truth, 300, round);
        let tree = chow_liu::chow_liu(&data, chow_liu::Estimate { shift: 0, ..Default::default() });
        let leaves =
            [Leaves::Categorical, Leaves::Parametric(Family::Laplace, 2), Leaves::Parametric(Family::Logistic, 1)];
        let mut circuit = hclt(&tree, 4, 3, leaves[round as usize % 3], round);
        let schedule = Schedule { phases: vec![], full: 12, batch: 64, pseudocount: 0.0, full_pseudocount: 0.0 };
        let mut last = f64::NEG_INFINITY;
        for epoch in 0..schedule.epochs() {
            let mean = em::epoch(&mut circuit, &data, &schedule, epoch, 0, &mut Workspace::default(), &mut |_| ());
            assert!(mean > last - 1e-4, "{mean} after {last}");
            last = mean;
            circuit.check().unwrap();
        }
    }
}

#[test]
fn training_stops_and_goes_on_with_the_same_result() {
    let truth = random_circuit(&mut Random::new(5, 0), 6);
    let data = sample(&truth, 500, 1);
    let tree = chow_liu::chow_liu(&data, chow_liu::Estimate { shift: 0, ..Default::default() });
    let schedule = Schedule { batch: 100, ..Schedule::of(6) };
    for leaves in [Leaves::Categorical, Leaves::Parametric(Family::Gaussian, 2)] {
        let mut whole = hclt(&tree, 4, 4, leaves, 7);
        let mut halves = whole.clone();
        let run = |circuit: &mut Circuit, epochs: std::ops::Range<usize>| {
            epochs.for_each(|e| {
                em::epoch(circuit, &data, &schedule, e, 9, &mut Workspace::default(), &mut |_| ());
            });
        };
        run(&mut whole, 0..6);
        run(&mut halves, 0..3);
        let (mut halves, epochs) = checkpoint::parse(&checkpoint::emit(&halves, 3)).unwrap();
        run(&mut halves, epochs..6);
        assert_eq!(whole, halves);
    }
}

#[test]
fn samples_come_as_often_as_they_should() {
    let circuit = random_circuit(&mut Random::new(6, 0), 3);
    let n = 200_000;
    let mut counts = vec![0u32; 64];
    for row in sample(&circuit, n, 3).values.chunks(3) {
        counts[row[0] as usize | (row[1] as usize) << 2 | (row[2] as usize) << 4] += 1;
    }
    for (row, count) in assignments(3).values.chunks(3).zip(counts) {
        let p = probability(&circuit, &known(row));
        let deviation = (count as f64 - p * n as f64).abs();
        assert!(deviation <= 5.0 * (p * n as f64).sqrt() + 1.0, "{p} {count}");
    }
}

#[test]
fn pruned_and_grown_circuits_are_distributions() {
    let mut random = Random::new(7, 0);
    for round in 0..20 {
        let mut circuit = random_circuit(&mut random, 6);
        let data = sample(&circuit, 400, round);
        let before = total_log_likelihood(&circuit, &data);
        let same = circuit.clone();
        grow(&mut circuit, 0.0, round);
        circuit.check().unwrap();
        assert!((total_log_likelihood(&circuit, &data) - before).abs() < 0.01 * before.abs().max(1.0));
        let edges: usize =
            same.regions.iter().map(|r| if r.size == same.regions.len() { 2 } else { 4 } * r.edges()).sum();
        assert_eq!(circuit.regions.iter().map(Region::edges).sum::<usize>(), edges);
        grow(&mut circuit, 0.3, round);
        prune(&mut circuit, &data, 0.75, &mut Workspace::default());
        circuit.check().unwrap();
        let left: usize = circuit.regions.iter().map(Region::edges).sum();
        assert!(left < 2 * edges, "{left} of {}", 4 * edges);
        let units = |c: &Circuit| c.regions.iter().map(|r| r.units).sum::<usize>();
        grow(&mut circuit, 0.3, round);
        let grown = units(&circuit);
        prune_units(&mut circuit, &data, 0.5, &mut Workspace::default());
        circuit.check().unwrap();
        assert!(units(&circuit) < grown);
    }
}

/// Random data too, which a circuit may call impossible.
#[test]
fn coded_data_return_whatever_they_are() {
    let mut random = Random::new(8, 0);
    for round in 0..60 {
        let circuit = random_circuit(&mut random, 1 + round % 9);
        let coded = Coded::new(&circuit).unwrap();
        for data in
            [sample(&circuit, 50, round as u64), possible(&circuit, &mut random), Data::new(vec![], circuit.variables)]
        {
            for streams in [1, 3] {
                let bytes = coded.encode(&data, streams).unwrap();
                assert_eq!(coded.decode(&bytes, data.samples()).unwrap().values, data.values);
            }
        }
    }
}

/// Values that the variables have, without regard to their probability.
fn possible(circuit: &Circuit, random: &mut Random) -> Data {
    let mut values = vec![0; 40 * circuit.variables];
    for region in &circuit.regions {
        let column = values.iter_mut().skip(region.variable.unwrap_or(usize::MAX)).step_by(circuit.variables);
        column.for_each(|x| *x = random.below(region.values()) as u8);
    }
    Data::new(values, circuit.variables)
}

#[test]
fn nearly_certain_values_cost_nearly_nothing_and_others_at_most_28_bits() {
    let stride = stride(1);
    let mut region = Region {
        variable: Some(0),
        units: 1,
        above: 1,
        size: 1,
        inputs: Inputs::Categorical,
        table: vec![0.0; 256 * stride],
        weights: vec![0.0; stride],
    };
    region.weights[0] = 1.0;
    region.table[7 * stride] = 1.0;
    let coded = Coded::new(&Circuit { variables: 1, regions: vec![region] }).unwrap();
    let data = Data::new(vec![7; 100_000], 1);
    let bytes = coded.encode(&data, 1).unwrap();
    assert!(bytes[0].len() <= 12, "{}", bytes[0].len());
    assert_eq!(coded.decode(&bytes, 100_000).unwrap(), data);
    let rare = Data::new((0..=255).collect(), 1);
    let bytes = coded.encode(&rare, 1).unwrap();
    assert!(bytes[0].len() <= 256 * 28 / 8 + 8);
    assert_eq!(coded.decode(&bytes, 256).unwrap(), rare);
}

/// Every interval in the order of the walk, as a probability, beside the exact conditional.
#[test]
fn integers_agree_with_floats() {
    let mut random = Random::new(9, 0);
    for round in 0..40 {
        let circuit = random_circuit(&mut random, 2 + round % 5);
        let coded = Coded::new(&circuit).unwrap();
        let tree = coded.tree().unwrap();
        let mut state = vec![0; tree.state_words()];
        for row in sample(&circuit, 10, round as u64).values.chunks(circuit.variables) {
            let mut partial = vec![None; circuit.variables];
            let mut before = 1.0;
            let walked = tree.walk(&mut state, |variable, conditional| {
                let (_, freq) = conditional.interval(row[variable] as usize);
                partial[variable] = Some(row[variable]);
                let now = probability(&circuit, &partial);
                let (found, expected) = (freq as f64 / (1u32 << MAX_BITS) as f64, now / before);
                // 16-bit weights: an absolute error of 2^-17 for each of at most 25 edges, in proportion to what is left of the others.
                assert!((found - expected).abs() < 1e-3, "{found} {expected}");
                before = now;
                row[variable] as usize
            });
            walked.unwrap();
        }
    }
}

/// The paper's order and its costs: what is evaluated for a variable is the path up to the lowest region that contains all variables so far.
/// Its conditionals are those of the walk, where both use the same order.
#[test]
fn partial_evaluation_gives_the_same_probabilities_and_costs_more() {
    let mut random = Random::new(10, 0);
    for round in 0..30 {
        let circuit = random_circuit(&mut random, 4 + round % 5);
        let coded = Coded::new(&circuit).unwrap();
        let tree = coded.tree().unwrap();
        let mut state = vec![0; tree.state_words()];
        let row = sample(&circuit, 1, round as u64).values;
        let mut reference = Partial::new(&circuit);
        let mut before = 1.0;
        let walked = tree.walk(&mut state, |variable, conditional| {
            let (_, freq) = conditional.interval(row[variable] as usize);
            let now = reference.evaluate(variable, row[variable]);
            assert!((freq as f64 / (1u32 << MAX_BITS) as f64 - now / before).abs() < 1e-3);
            before = now;
            row[variable] as usize
        });
        walked.unwrap();
        assert!((before / probability(&circuit, &known(&row)) - 1.0).abs() < 1e-9);
    }
    // A chain of 64 variables, 16 states: the path grows with the depth, the walk does not notice.
    let chain = chow_liu::Tree { parents: (0..64).map(|v: usize| v.checked_sub(1)).collect() };
    let balanced = hclt(&chow_liu::balanced(&chain), 256, 16, Leaves::Categorical, 1);
    let (walk, partial) = (cost::walk(&balanced), cost::partial_evaluation(&balanced));
    assert!(partial.encode > walk.encode && partial.decode > 5 * walk.decode, "{partial:?} {walk:?}");
    assert_eq!(walk, cost::walk(&hclt(&chain, 256, 16, Leaves::Categorical, 1)));
}

/// Probability of a prefix: values of regions on the path, those of finished subtrees kept, everything later summed to 1.
struct Partial<'a> {
    circuit: &'a Circuit,
    parents: Vec<Option<usize>>,
    /// Product of what is known at each unit: its own input, and the sums of children that were met.
    inputs: Vec<Vec<f64>>,
    sums: Vec<Option<Vec<f64>>>,
}

impl<'a> Partial<'a> {
    fn new(circuit: &'a Circuit) -> Partial<'a> {
        let mut parents = vec![None; circuit.regions.len()];
        for index in 0..circuit.regions.len() {
            circuit.children(index).for_each(|child| parents[child] = Some(index));
        }
        let inputs = circuit.regions.iter().map(|r| vec![1.0; r.units]).collect();
        Partial { circuit, parents, inputs, sums: vec![None; circuit.regions.len()] }
    }

    fn evaluate(&mut self, variable: usize, value: u8) -> f64 {
        let mut at = self.circuit.regions.iter().position(|r| r.variable == Some(variable));
        let own = at.unwrap();
        let region = &self.circuit.regions[own];
        let row = &region.table[value as usize * region.stride()..];
        self.inputs[own].iter_mut().zip(row).for_each(|(x, &p)| *x = p as f64);
        while let Some(index) = at {
            let region = &self.circuit.regions[index];
            let mut values = self.inputs[index].clone();
            for child in self.circuit.children(index) {
                self.sums[child].iter().for_each(|s| values.iter_mut().zip(s).for_each(|(v, s)| *v *= s));
            }
            let rows = region.weights.chunks_exact(region.stride());
            self.sums[index] =
                Some(rows.map(|row| row.iter().zip(&values).map(|(&w, v)| w as f64 * v).sum()).collect());
            at = self.parents[index];
        }
        self.sums.last().unwrap().as_ref().unwrap()[0]
    }
}

/// Changed bytes end in an error or in other samples, never in a panic.
#[test]
fn damage_ends() {
    let mut random = Random::new(11, 0);
    let mut parsed = 0;
    for round in 0..400 {
        let circuit = random_circuit(&mut random, 1 + round % 6);
        let coded = Coded::new(&circuit).unwrap();
        let data = sample(&circuit, 20, 1);
        let mut stream = coded.encode(&data, 1).unwrap();
        let mut words: Vec<u32> = bytemuck::cast_slice(coded.bytes()).to_vec();
        let at = random.below(stream[0].len());
        stream[0][at] ^= 1 << random.below(8);
        if let Ok(changed) = coded.decode(&stream, 20) {
            assert_ne!(changed, data);
        }
        let left = random.below(stream[0].len());
        stream[0].truncate(left);
        assert_eq!(coded.decode(&stream, 20), Err(CodecError::Stream));
        let at = random.below(words.len());
        let old = words[at];
        words[at] = [old ^ 1 << random.below(32), random.bits() as u32, old.wrapping_add(1), 0][random.below(4)];
        if random.below(4) == 0 {
            words.truncate(random.below(words.len()));
        }
        let Ok(tree) = Tree::new_checked(bytemuck::cast_slice(&words)) else { continue };
        parsed += 1;
        let mut state = vec![0; tree.state_words()];
        let stream = coded.encode(&data, 1).unwrap();
        let mut coder = pith::circuit::rans64::Decoder::new(&stream[0]).unwrap();
        (0..20).for_each(|_| tree.decode(&mut coder, &mut state, &mut vec![0; tree.variables()]).unwrap());
    }
    assert!(parsed > 50, "{parsed}");
}

#[test]
fn streams_are_as_long_as_the_likelihood_says() {
    let truth = random_circuit(&mut Random::new(12, 0), 8);
    let data = sample(&truth, 20_000, 2);
    let coded = Coded::new(&truth).unwrap();
    let bits = coded.encode(&data, 1).unwrap()[0].len() as f64 * 8.0 / data.values.len() as f64;
    assert!((bits - bits_per_dimension(&truth, &data)).abs() < 0.001, "{bits}");
}
