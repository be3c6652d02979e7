//! A supernet: its parameters, its sub-networks, and its file.

use super::quantizer::{Quantizer, Site};
use super::{ElasticError, ElasticOptions, Form};
use crate::graph::{Graph, Op, Role, simplify, trainable};
use crate::random::Random;
use crate::scheme::{Granularity, LayerOptions, Levels, QuantOptions, Rounded, SchemeError, limited_at};
use crate::train::{Balance, Data, Device, LEVELS, Moments, Net, TrainError, is_layer, with_norms};
use crate::{files, npy, onnx};
use ndarray::{ArrayD, Axis};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

/// Samples that first steps of activations come from, and values of each.
const FIRST: usize = 256;
const VALUES: usize = 20_000;

/// Fewer levels than these leave sums of few terms in long steps.
const COARSE: i32 = 16;

/// A layer whose weights are elastic.
#[derive(Clone, Debug)]
pub struct Layer {
    /// Name of its node.
    pub name: String,
    /// Output channels.
    pub filters: usize,
    /// Its weights in the parameter vector.
    pub weights: Range<usize>,
    /// Forms that it may take, the widest first.
    pub forms: Vec<Form>,
    quantizers: Vec<Quantizer>,
}

/// See [`super`].
#[derive(Clone, Debug)]
pub struct Supernet {
    /// With batch norms, and with the float weights that all sub-networks share.
    pub graph: Graph,
    /// In execution order.
    pub layers: Vec<Layer>,
    /// What it may be.
    pub options: ElasticOptions,
    /// Activations that are elastic. A choice of forms has those of the layers, then those of the sites.
    sites: Vec<Site>,
    /// The flat vector of the graph, then the steps and zero points.
    theta: Vec<f32>,
    moments: Moments,
    /// What became of raw data before training saw them, see [`Data::affine`].
    affine: Affine,
}

type Affine = Option<(Vec<f32>, Vec<f32>)>;

/// A sub-network as a float graph whose weights lie on the levels, and these levels.
#[derive(Clone, Debug)]
pub struct Lowered {
    /// For inference: batch norms are folded into steps and biases.
    pub graph: Graph,
    /// By layer, with the width in which the levels can be stored without zero points: an asymmetric form may need one bit more than it has.
    pub layers: BTreeMap<String, (u8, Rounded)>,
    /// By layer, the levels of what it reads, where they were trained.
    pub activations: BTreeMap<String, Levels>,
}

impl Supernet {
    /// From a network for inference ([`simplify`]); first steps come from its weights, first moments from the data.
    pub fn new(graph: &Graph, data: &Data<'_>, options: &ElasticOptions) -> Result<Supernet, ElasticError> {
        options.check()?;
        let mut supernet =
            Supernet::of(with_norms(graph, data, Balance::Filter).map_err(TrainError::from)?.graph, options)?;
        let mut theta = std::mem::take(&mut supernet.theta);
        for layer in &supernet.layers {
            let weights = theta[layer.weights.clone()].to_vec();
            layer.quantizers.iter().for_each(|q| q.start(&mut theta, &weights, layer.filters));
        }
        supernet.theta = theta;
        supernet.affine = data.affine.cloned();
        supernet.start_sites(data)?;
        Ok(supernet)
    }

    /// First steps of activations, from what a batch of samples gives.
    fn start_sites(&mut self, data: &Data<'_>) -> Result<(), ElasticError> {
        if self.sites.is_empty() {
            return Ok(());
        }
        let net = Net::new(&self.graph, &Device::cpu())?;
        let Some(batch) = data.batches(&net, &data.spaced(FIRST), FIRST).next() else { return Ok(()) };
        let nodes: Vec<usize> = self.sites.iter().map(|site| site.node).collect();
        let found = net.values(&self.theta, &batch, &nodes);
        for (site, values) in self.sites.iter().zip(found) {
            let some: Vec<f32> = values.iter().step_by(values.len().div_ceil(VALUES).max(1)).copied().collect();
            site.start(&mut self.theta, &some);
        }
        Ok(())
    }

    /// Whether data come as those did that it was trained on.
    fn check(&self, data: &Data<'_>) -> Result<(), ElasticError> {
        let near = |a: &[f32], b: &[f32]| {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-5 * (a.abs() + b.abs()))
        };
        match (&self.affine, data.affine) {
            (None, None) => Ok(()),
            (Some(own), Some(given)) if near(&own.0, &given.0) && near(&own.1, &given.1) => Ok(()),
            (own, given) => Err(ElasticError::Preprocess { own: words(own.as_ref()), given: words(given) }),
        }
    }

    /// The layers of a graph with batch norms; steps are still zero.
    fn of(graph: Graph, options: &ElasticOptions) -> Result<Supernet, ElasticError> {
        let mut theta = graph.theta();
        let all: Vec<(usize, Range<usize>)> = graph
            .parameters()
            .into_iter()
            .filter(|p| p.role == Role::Weight && is_layer(&graph.nodes[p.node].op))
            .map(|p| (p.node, p.range))
            .collect();
        let last = all.len().saturating_sub(1);
        let mut layers = Vec::new();
        for (k, (node, weights)) in all.into_iter().enumerate() {
            let filters = match &graph.nodes[node].op {
                Op::Conv2d { bias, .. } | Op::ConvTranspose2d { bias, .. } | Op::Linear { bias, .. } => bias.len(),
                _ => continue,
            };
            let name = graph.nodes[node].name.clone();
            let forms = options.forms_of_layer(&name, k == 0 || k == last);
            let quantizers = forms.iter().map(|&form| place(form, filters, &mut theta)).collect();
            layers.push(Layer { name, filters, weights, forms, quantizers });
        }
        if let Some(layer) = options.layers.keys().find(|&name| layers.iter().all(|l| l.name != *name)) {
            let has = layers.iter().map(|l| format!("'{}'", l.name)).collect::<Vec<_>>().join(", ");
            return Err(ElasticError::Named { layer: layer.clone(), has });
        }
        if layers.is_empty() {
            return Err(ElasticError::NoLayers);
        }
        let sites = sites(&graph, &layers, options, &mut theta);
        let moments = Moments::of(&graph);
        Ok(Supernet { graph, layers, options: options.clone(), sites, theta, moments, affine: None })
    }

    /// Parameters, then steps and zero points.
    pub fn theta(&self) -> &[f32] {
        &self.theta
    }

    /// Weights that are zero, in the parameter vector.
    pub(super) fn pruned(&self) -> Vec<usize> {
        self.layers.iter().flat_map(|l| l.weights.clone()).filter(|&i| self.theta[i] == 0.0).collect()
    }

    /// Steps and zero points.
    pub(super) fn extra(&self) -> &[f32] {
        let own: usize = self.graph.nodes.iter().flat_map(|n| n.op.parameters()).map(|(_, v)| v.len()).sum();
        &self.theta[own.min(self.theta.len())..]
    }

    pub(super) fn set(&mut self, theta: &[f32], moments: &Moments) {
        self.theta = theta.to_vec();
        self.moments = moments.clone();
        self.graph.set_theta(theta);
        self.moments.write(&mut self.graph);
    }

    /// A form for every layer, by `pick` of its forms.
    fn choice(&self, mut pick: impl FnMut(&[Form]) -> usize) -> Vec<usize> {
        let all = self.layers.iter().map(|l| &l.forms).chain(self.sites.iter().map(|s| &s.forms));
        all.map(|forms| pick(forms)).collect()
    }

    /// All layers at their widest, other traits at random.
    pub(super) fn widest(&self, random: &mut Random) -> Vec<usize> {
        self.choice(|forms| of_width(forms, forms[0].bits, random))
    }

    /// All layers at their narrowest, other traits at random.
    pub(super) fn narrowest(&self, random: &mut Random) -> Vec<usize> {
        self.choice(|forms| of_width(forms, forms[forms.len() - 1].bits, random))
    }

    /// Every layer with a width at random, then other traits at random.
    pub fn random(&self, random: &mut Random) -> Vec<usize> {
        self.choice(|forms| {
            let mut widths: Vec<u8> = forms.iter().map(|f| f.bits).collect();
            widths.dedup();
            let bits = widths[random.below(widths.len())];
            of_width(forms, bits, random)
        })
    }

    /// One form for all layers, or for each the narrowest that is at least as wide; activations have the width that is given, or the widest.
    pub fn uniform(&self, wanted: Form, activation_bits: Option<u8>) -> Vec<usize> {
        let weights = self.layers.iter().map(|l| uniform(&l.forms, wanted));
        weights.chain(self.sites.iter().map(|s| activation(&s.forms, activation_bits))).collect()
    }

    /// The forms of the activations that options name; none that names one: the widest.
    pub fn choose_activations(&self, wanted: &QuantOptions) -> Result<Vec<usize>, ElasticError> {
        self.options.check_activations(wanted)?;
        let own = |layer: usize| wanted.layers.get(&self.layers[layer].name).and_then(|own| own.activation_bits);
        let has_site = |layer: usize| self.sites.iter().any(|site| site.layers.contains(&layer));
        let fixed = (0..self.layers.len()).find(|&l| own(l).is_some_and(|bits| bits < 8) && !has_site(l));
        if let Some(layer) = fixed {
            return Err(SchemeError::FixedActivation { name: self.layers[layer].name.clone() }.into());
        }
        let of = |site: &Site| {
            let named = site.layers.iter().filter_map(|&layer| own(layer)).max();
            activation(&site.forms, named.or(wanted.activation_bits))
        };
        Ok(self.sites.iter().map(of).collect())
    }

    /// The forms that options name: by layer, else for all layers the narrowest that is at least as wide as the network's; then those of the activations.
    pub fn choose(&self, wanted: &QuantOptions) -> Result<Vec<usize>, ElasticError> {
        if let Some(layer) = wanted.layers.keys().find(|name| self.layers.iter().all(|l| l.name != **name)) {
            return Err(ElasticError::NoLayer { layer: layer.clone() });
        }
        let exactly = |layer: &Layer, own: &LayerOptions| {
            let bits = own.weight_bits.unwrap_or(wanted.weight_bits);
            let granularity = own.granularity.unwrap_or(wanted.granularity);
            let form = Form { bits, granularity, symmetric: bits == 8 || own.symmetric.unwrap_or(true) };
            layer.forms.iter().position(|f| *f == form).ok_or_else(|| ElasticError::NoForm {
                layer: layer.name.clone(),
                form: form.to_string(),
                has: names(&layer.forms),
            })
        };
        let common = || self.options.common(wanted.weight_bits, wanted.granularity);
        let names_form =
            |own: &LayerOptions| own.weight_bits.is_some() || own.granularity.is_some() || own.symmetric.is_some();
        let of = |layer: &Layer| match wanted.layers.get(&layer.name) {
            Some(own) if names_form(own) => exactly(layer, own),
            _ => Ok(uniform(&layer.forms, common()?)),
        };
        let weights: Vec<usize> = self.layers.iter().map(of).collect::<Result<_, _>>()?;
        Ok([weights, self.choose_activations(wanted)?].concat())
    }

    /// Parameters with quantized weights, and behind them the levels of activations.
    pub(super) fn quantized(&self, theta: &[f32], choice: &[usize]) -> Vec<f32> {
        let mut quantized = theta.to_vec();
        for (layer, &form) in self.layers.iter().zip(choice) {
            let at = layer.weights.clone();
            layer.quantizers[form].apply(theta, &theta[at.clone()], layer.filters, &mut quantized[at]);
        }
        for (site, &form) in self.sites.iter().zip(&choice[self.layers.len()..]) {
            let (step, lo, hi) = site.levels(theta, form);
            quantized.extend([step, lo as f32, hi as f32]);
        }
        quantized
    }

    /// Adds to `total` what a gradient by [`Supernet::quantized`] says of the parameters.
    pub(super) fn pull_back(&self, theta: &[f32], choice: &[usize], gradient: &[f32], total: &mut [f32]) {
        let mut at = 0;
        for (layer, &form) in self.layers.iter().zip(choice) {
            let own = layer.weights.clone();
            add(&mut total[at..own.start], &gradient[at..own.start]);
            layer.quantizers[form].pull_back(theta, own.clone(), layer.filters, &gradient[own.clone()], total);
            at = own.end;
        }
        let count = total.len();
        add(&mut total[at..], &gradient[at..count]);
        let levels = gradient[count..].chunks_exact(LEVELS);
        for ((site, &form), levels) in self.sites.iter().zip(&choice[self.layers.len()..]).zip(levels) {
            site.pull_back(theta, form, levels, total);
        }
    }

    /// The rate of a sub-network, mean bits of a weight when it is coded, and adds to `total` its gradient times `price`, in nats of the loss.
    pub(super) fn add_rate(&self, theta: &[f32], choice: &[usize], price: f32, total: &mut [f32]) -> f32 {
        let weights: usize = self.layers.iter().map(|l| l.weights.len()).sum();
        let share = 1.0 / weights.max(1) as f32;
        let of = |(layer, &form): (&Layer, &usize)| {
            layer.quantizers[form].add_rate(theta, layer.weights.clone(), layer.filters, price * share, total)
        };
        share * self.layers.iter().zip(choice).map(of).sum::<f32>()
    }

    /// A sub-network's parameters and batch-norm moments, recalibrated on the data; none for the float network.
    pub fn recalibrated(&self, net: &Net, choice: Option<&[usize]>, data: &Data<'_>) -> (Vec<f32>, Moments) {
        self.recalibrated_by(self.options.recalibrate, net, choice, data)
    }

    /// The same by so many samples.
    pub fn recalibrated_by(
        &self,
        samples: usize,
        net: &Net,
        choice: Option<&[usize]>,
        data: &Data<'_>,
    ) -> (Vec<f32>, Moments) {
        let theta = choice.map_or_else(|| self.theta.clone(), |choice| self.quantized(&self.theta, choice));
        let mut moments = self.moments.clone();
        if !moments.nodes.is_empty() {
            net.refresh(&theta, &mut moments, data.batches(net, &data.spaced(samples), 256));
        }
        (theta, moments)
    }

    /// The network that runs sub-networks.
    pub fn net(&self, device: &Device) -> Result<Net, ElasticError> {
        let nodes = self.sites.iter().map(|site| site.node).collect();
        Ok(Net::new(&self.graph, device)?.rounding(nodes, self.theta.len()))
    }

    /// A sub-network for inference.
    pub fn lower(&self, choice: &[usize], data: &Data<'_>, device: &Device) -> Result<Lowered, ElasticError> {
        self.check(data)?;
        let net = self.net(device)?;
        let (theta, moments) = self.recalibrated(&net, Some(choice), data);
        let mut graph = self.graph.clone();
        graph.set_theta(&theta);
        moments.write(&mut graph);
        let graph = simplify(graph);
        let mut activations = BTreeMap::new();
        for (site, &form) in self.sites.iter().zip(&choice[self.layers.len()..]) {
            let (step, lo, hi) = site.levels(&self.theta, form);
            let readers = site.layers.iter().map(|&layer| self.layers[layer].name.clone());
            activations.extend(readers.map(|name| (name, Levels { step, lo, hi })));
        }
        let mut layers = BTreeMap::new();
        for (layer, &form) in self.layers.iter().zip(choice) {
            let weights = &self.theta[layer.weights.clone()];
            let (levels, steps) = layer.quantizers[form].levels(&self.theta, weights, layer.filters);
            let reads_few = activations.get(&layer.name).is_some_and(|own: &Levels| own.hi - own.lo < COARSE);
            if let Some(mut rounded) = folded(&graph, &layer.name, levels, &steps) {
                if reads_few && graph.nodes.iter().any(|n| n.name == layer.name && is_depthwise(&n.op)) {
                    refine(&mut rounded);
                }
                layers.insert(layer.name.clone(), (layer.forms[form].bits.max(rounded.bits()), rounded));
            }
        }
        Ok(Lowered { graph, layers, activations })
    }

    /// Writes the file: an `.npz` with the float network as ONNX, the options, and the steps.
    pub fn write(&self, path: &Path) -> Result<(), ElasticError> {
        let fail = |what: String| ElasticError::Write(what);
        let network = onnx::encode(&self.graph).map_err(|e| fail(e.to_string()))?;
        let options = serde_json::to_vec(&self.options).map_err(|e| fail(e.to_string()))?;
        let bytes = |values: &[u8]| npy::encode("|u1", &[values.len()], values);
        let extra = self.extra();
        let vector = |values: &[f32]| npy::encode("<f4", &[values.len()], bytemuck::cast_slice(values));
        let (scale, bias) = self.affine.clone().unwrap_or_default();
        let arrays = vec![
            ("network.onnx".to_string(), bytes(&network)),
            ("elastic.json".to_string(), bytes(&options)),
            ("steps".to_string(), vector(extra)),
            ("scale".to_string(), vector(&scale)),
            ("bias".to_string(), vector(&bias)),
        ];
        let archive = npy::encode_archive(&arrays).map_err(|e| fail(e.to_string()))?;
        files::write_whole(path, &archive).map_err(|e| fail(format!("{}: {e}", path.display())))
    }

    /// Reads a file.
    pub fn read(path: &Path) -> Result<Supernet, ElasticError> {
        let shown = path.display().to_string();
        let fail = |what: String| ElasticError::File { path: shown.clone(), what };
        let arrays = npy::read(path).map_err(|e| fail(e.to_string()))?;
        let find = |name: &str| {
            let found = arrays.iter().find(|(n, _)| n == name).map(|(_, a)| a.values.iter().copied());
            found.map(Iterator::collect::<Vec<f32>>).ok_or_else(|| fail(format!("it has no array '{name}'")))
        };
        let bytes = |name: &str| Ok::<_, ElasticError>(find(name)?.into_iter().map(|v| v as u8).collect::<Vec<u8>>());
        let options: ElasticOptions =
            serde_json::from_slice(&bytes("elastic.json")?).map_err(|e| fail(format!("'elastic.json': {e}")))?;
        options.check().map_err(|e| fail(e.to_string()))?;
        let graph = onnx::import_bytes(&shown, &bytes("network.onnx")?).map_err(|e| fail(e.to_string()))?;
        let mut supernet = Supernet::of(trainable(graph), &options)?;
        let steps = find("steps")?;
        let own = supernet.theta.len() - supernet.extra().len();
        if steps.len() != supernet.extra().len() {
            return Err(fail(format!(
                "'steps' holds {} numbers, its layers need {}",
                steps.len(),
                supernet.extra().len()
            )));
        }
        if let Some(value) = steps.iter().find(|s| !s.is_finite() || s.abs() > 80.0) {
            return Err(fail(format!("'steps' holds {value}")));
        }
        supernet.theta[own..].copy_from_slice(&steps);
        let (scale, bias) = (find("scale")?, find("bias")?);
        supernet.affine = (!scale.is_empty()).then_some((scale, bias));
        Ok(supernet)
    }
}

impl std::fmt::Display for Form {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let symmetry = if self.symmetric { "symmetric" } else { "asymmetric" };
        write!(f, "{} bits {} {symmetry}", self.bits, name_of(self.granularity))
    }
}

/// Preprocessing, for a message.
fn words(affine: Option<&(Vec<f32>, Vec<f32>)>) -> String {
    affine.map_or("x".into(), |(scale, bias)| format!("x * {scale:?} + {bias:?}"))
}

/// A form of a width, at random.
fn of_width(forms: &[Form], bits: u8, random: &mut Random) -> usize {
    let same: Vec<usize> = (0..forms.len()).filter(|&i| forms[i].bits == bits).collect();
    same[random.below(same.len())]
}

fn uniform(forms: &[Form], wanted: Form) -> usize {
    let fits = |f: &Form| {
        f.bits >= wanted.bits && f.granularity == wanted.granularity && (f.symmetric == wanted.symmetric || f.bits == 8)
    };
    forms.iter().rposition(fits).unwrap_or(0)
}

/// Forms, for a message.
pub(super) fn names(forms: &[Form]) -> String {
    forms.iter().map(Form::to_string).collect::<Vec<_>>().join(", ")
}

pub(super) fn name_of(granularity: Granularity) -> &'static str {
    match granularity {
        Granularity::Channel => "per channel",
        Granularity::Tensor => "per tensor",
    }
}

/// The narrowest form that is at least as wide as wanted; the first of its width.
fn activation(forms: &[Form], wanted: Option<u8>) -> usize {
    let bits = forms.iter().rev().map(|f| f.bits).find(|&bits| wanted.is_some_and(|wanted| bits >= wanted));
    forms.iter().position(|f| Some(f.bits) == bits).unwrap_or(0)
}

/// What the layers of a graph read, where it can be limited, with steps at the end of the parameter vector.
fn sites(graph: &Graph, layers: &[Layer], options: &ElasticOptions, theta: &mut Vec<f32>) -> Vec<Site> {
    let mut sites: Vec<Site> = Vec::new();
    for (k, layer) in layers.iter().enumerate() {
        let node = graph.nodes.iter().find(|n| n.name == layer.name);
        let Some(node) = node.and_then(|n| limited_at(graph, n.inputs[0])) else { continue };
        if let Some(site) = sites.iter_mut().find(|site| site.node == node) {
            site.layers.push(k);
            continue;
        }
        let signed = graph.nodes[node].op.clamp().is_none_or(|clamp| clamp.min < 0.0);
        let count = graph.shape(graph.nodes[node].output).iter().product();
        sites.push(Site { node, layers: vec![k], signed, count, forms: Vec::new(), places: Vec::new() });
    }
    let last = layers.len().saturating_sub(1);
    for site in &mut sites {
        site.forms = options.activation_forms(site.layers.contains(&last), site.signed);
        for _ in &site.forms {
            site.places.push(theta.len());
            theta.resize(theta.len() + 2, 0.0);
        }
    }
    sites.retain(|site| !site.forms.is_empty());
    sites
}

/// The places of a form's steps at the end of the parameter vector.
fn place(form: Form, filters: usize, theta: &mut Vec<f32>) -> Quantizer {
    let count = if form.granularity == Granularity::Channel { filters } else { 1 };
    let start = theta.len();
    let zeros = if form.symmetric { start + count..start + count } else { start + count..start + 2 * count };
    theta.resize(zeros.end, 0.0);
    Quantizer { form, steps: start..start + count, zeros }
}

fn add(total: &mut [f32], more: &[f32]) {
    total.iter_mut().zip(more).for_each(|(t, m)| *t += m);
}

fn is_depthwise(op: &Op) -> bool {
    matches!(op, Op::Conv2d { groups, weight, .. } if *groups > 1 && weight.shape().last() == Some(&1))
}

/// The same weights in shorter steps, as many as eight bits hold. A bias is a whole number of steps of the sum, which are long where weights and inputs have
/// few levels: as long as those of the output where a sum has nine terms.
fn refine(rounded: &mut Rounded) {
    let largest = rounded.values.iter().map(|v| v.unsigned_abs()).max().unwrap_or(0);
    let factor = 127 / largest.clamp(1, 127);
    rounded.values.mapv_inplace(|v| v * factor as i8);
    rounded.scales.iter_mut().for_each(|s| *s /= f32::from(factor));
}

/// A layer's levels with the steps that they have in the folded graph, where a batch norm may have turned a filter's sign; none where folding
/// changed more than one factor per filter.
fn folded(graph: &Graph, name: &str, levels: Vec<i8>, steps: &[f32]) -> Option<Rounded> {
    let node = graph.nodes.iter().find(|n| n.name == name)?;
    let (weight, bias) = crate::least_squares::weights(&node.op)?;
    let mut values = ArrayD::from_shape_vec(weight.raw_dim(), levels).ok()?;
    let mut scales = Vec::new();
    for (oc, (mut own, filter)) in values.axis_iter_mut(Axis(0)).zip(weight.axis_iter(Axis(0))).enumerate() {
        // The largest level tells the factor.
        let (level, real) = own
            .iter()
            .zip(&filter)
            .map(|(&n, &w)| (f32::from(n), w))
            .fold((0.0f32, 0.0f32), |best, pair| if pair.0.abs() > best.0.abs() { pair } else { best });
        let factor = if level == 0.0 { steps[oc] } else { real / level };
        if factor.abs() < 1e-30 {
            own.fill(0);
            scales.push(1.0);
            continue;
        }
        let is_so = |(&n, &w): (&i8, &f32)| (f32::from(n) * factor - w).abs() <= 1e-3 * factor.abs();
        if !own.iter().zip(&filter).all(is_so) {
            return None;
        }
        if factor < 0.0 {
            own.mapv_inplace(|n| -n);
        }
        scales.push(factor.abs());
    }
    Some(Rounded { values, scales, error: 0.0, bias: Some(bias.to_vec()) })
}
