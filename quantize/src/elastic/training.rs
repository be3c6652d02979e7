//! Training of all sub-networks at once ("EQ-Net", section 3.3 and algorithm 1).

use super::rate::Price;
use super::{ElasticError, Supernet, shape_loss};
use crate::random::Random;
use crate::train::{Data, Device, Gradient, Hooks, Lesson, Net, Session, Step, Teacher};
use std::cell::Cell;
use std::path::Path;

/// A trained supernet.
#[derive(Debug)]
pub struct Trained {
    /// With trained weights and steps.
    pub supernet: Supernet,
    /// Mean loss of the widest sub-network over the last epoch.
    pub loss: f32,
    /// Mean bits of a weight of the narrowest sub-network, coded without context, where [`super::ElasticOptions::coded_bits`] bounds them.
    pub coded_bits: Option<f32>,
}

/// Trains a supernet, in which weights that are zero, pruned ones, stay zero; with a teacher, the widest sub-network learns from it as the options' `distill` says.
pub fn train(
    mut supernet: Supernet,
    data: &Data<'_>,
    teacher: Option<&Teacher>,
    device: &Device,
    hooks: &mut Hooks<'_>,
    resume: Option<&Path>,
) -> Result<Trained, ElasticError> {
    let options = supernet.options.clone();
    let mut session = Session::with_extra(&supernet.graph, supernet.extra(), &options.train, device)?;
    session.note = format!("{options:?}");
    if let Some(path) = resume {
        session.resume(path)?;
    }
    let pruned = supernet.pruned();
    let net = supernet.net(device)?;
    let (price, coded) = (Cell::new(Price::of(&session.kept)), Cell::new(None));
    let mut learn = |lesson: Lesson<'_>| {
        let (gradient, bits) = gradient(&supernet, &net, lesson, price.get());
        coded.set(bits);
        gradient
    };
    let mut step = |step: &mut Step<'_>| {
        pruned.iter().for_each(|&i| step.theta[i] = 0.0);
        if let (Some(goal), Some(bits)) = (options.coded_bits, coded.get()) {
            let mut own = price.get().unwrap_or(Price::new(bits));
            own.follow(bits, goal, step.done, step.steps);
            price.set(Some(own));
            *step.kept = own.kept();
        }
        (hooks.step)(step);
    };
    let (report, stop, checkpoint) = (hooks.report, hooks.stop, hooks.checkpoint.clone());
    let mut hooks = Hooks { step: &mut step, report, stop, checkpoint };
    let loss = session.run_by(data, teacher, &mut hooks, &mut learn)?;
    supernet.set(&session.theta, &session.moments);
    Ok(Trained { supernet, loss, coded_bits: coded.get() })
}

/// The loss of the widest, of random and of the narrowest sub-network, of the weights' distribution, and of the narrowest one's coded bits, whose mean per
/// weight is told where it is bounded. The first outputs and the loss are the widest's.
fn gradient(supernet: &Supernet, net: &Net, lesson: Lesson<'_>, price: Option<Price>) -> (Gradient, Option<f32>) {
    let Lesson { theta, moments, batch, goal, rate, step, .. } = lesson;
    let options = &supernet.options;
    let mut random = Random::new(options.train.seed ^ 0xE1A5, step as u64);
    let mut choices = vec![supernet.widest(&mut random)];
    choices.extend((0..options.random_subnets).map(|_| supernet.random(&mut random)));
    choices.push(supernet.narrowest(&mut random));
    // Where there is nothing to choose, one is all.
    choices.dedup();
    let mut total = vec![0.0; theta.len()];
    let mut goal = goal.clone();
    let mut first: Option<Gradient> = None;
    for choice in &choices {
        let quantized = supernet.quantized(theta, choice);
        // Running moments follow the widest alone; a sub-network is judged with moments of its own.
        let mut scratch = moments.clone();
        let (moments, rate) = if first.is_none() { (&mut *moments, rate) } else { (&mut scratch, 0.0) };
        let found = net.gradient(&quantized, moments, batch, &goal, rate);
        supernet.pull_back(theta, choice, &found.theta, &mut total);
        goal = goal.taught(&found.outputs, options.guidance, net.classes());
        first.get_or_insert(found);
    }
    let share = 1.0 / supernet.layers.len().max(1) as f32;
    for layer in supernet.layers.iter().skip(1) {
        let at = layer.weights.clone();
        let factors = [options.skewness, options.kurtosis];
        shape_loss::add(&theta[at.clone()], factors, share, &mut total[at]);
    }
    let narrowest = choices.last().filter(|_| options.coded_bits.is_some());
    let coded = narrowest.map(|choice| supernet.add_rate(theta, choice, price.map_or(0.0, Price::value), &mut total));
    let first = first.unwrap_or_default();
    (Gradient { theta: total, ..first }, coded)
}
