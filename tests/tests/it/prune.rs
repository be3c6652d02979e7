//! Pruning of real networks: their groups, and that removal keeps what masking computes.

use ndarray::{ArrayD, IxDyn};
use pith_tests::{relative_error, shared};
use quantize::graph::{Graph, eval, trainable};
use quantize::onnx::import;
use quantize::prune::cost::Costs;
use quantize::prune::groups::{Groups, Kind};
use quantize::prune::remove::{mask, remove};
use quantize::prune::select::{Target, select};

fn graph(model: &str) -> Option<Graph> {
    Some(trainable(import(&shared(&format!("models/{model}.onnx"))?).unwrap()))
}

/// Values that look like noise.
fn input(shape: &[usize]) -> ArrayD<f32> {
    let mut k = 0u32;
    ArrayD::from_shape_simple_fn(IxDyn(shape), || {
        k = k.wrapping_mul(1664525).wrapping_add(1013904223);
        (k >> 8) as f32 / (1 << 24) as f32
    })
}

fn count(graph: &Graph, kind: Kind) -> usize {
    Groups::find(graph, kind).map_or(0, |groups| groups.len())
}

#[test]
fn real_networks_have_the_groups_that_their_plans_show() {
    // Filters (and channels) that are not the classes; branches; weights of convolutions and linear layers.
    let expected = [
        ("ic_resnet8", 16 + 16 + 32 + 32 + 64 + 64, 3),
        // Shortcuts padded with zero channels: all stages share the residual channels, of which the last has 64.
        ("resnet20_cifar10", 64 + 3 * (16 + 32 + 64), 9),
        ("kws_ref", 5 * 64, 0),
        ("fmnist_cnn_bn", 32 + 64 + 64, 0),
    ];
    for (model, filters, branches) in expected {
        let Some(graph) = graph(model) else { return };
        let kinds =
            [Kind::Filter, Kind::Channel, Kind::Shape, Kind::Block { rows: 1, cols: 4 }, Kind::Depth, Kind::Weight];
        let counts = kinds.map(|kind| count(&graph, kind));
        let groups = Groups::find(&graph, Kind::Filter).unwrap();
        let of = |l: usize| groups.layer.iter().filter(|&&layer| layer == l).count();
        let layers: Vec<String> =
            groups.layers.iter().enumerate().map(|(l, name)| format!("{name} {}", of(l))).collect();
        println!("{model}: filter, channel, shape, 1x4, depth, weight {counts:?}; {}", layers.join(", "));
        assert_eq!((counts[0], counts[1], counts[4]), (filters, filters, branches), "{model}");
    }
}

#[test]
fn half_of_the_macs_leave_real_networks() {
    for model in ["ic_resnet8", "resnet20_cifar10", "kws_ref", "fmnist_cnn_bn"] {
        let Some(graph) = graph(model) else { return };
        let x: Vec<ArrayD<f32>> = graph.inputs.iter().map(|p| input(graph.shape(p.tensor))).collect();
        for kind in [Kind::Filter, Kind::Channel, Kind::Depth] {
            let Ok(groups) = Groups::find(&graph, kind) else { continue };
            let costs = Costs::new(&graph, &groups);
            let all = costs.total(&vec![true; groups.len()]);
            let share = if kind == Kind::Depth { 0.75 } else { 0.5 };
            let kept = select(&groups.norms(&graph.theta()), &costs, Target::MacsShare(share), &groups).unwrap();
            let removed = remove(graph.clone(), &groups, &kept);
            let macs = |g: &Graph| -> u64 {
                let one = |n: &quantize::graph::Node| {
                    n.inputs.first().map_or(0, |&x| eval::macs(&n.op, g.shape(x), g.shape(n.output)))
                };
                g.nodes.iter().map(one).sum()
            };
            assert_eq!((macs(&graph), macs(&removed)), (all.macs, costs.total(&kept).macs), "{model} {kind}");
            let left = macs(&removed) as f64 / all.macs as f64;
            println!(
                "{model}, {kind}: {} of {} groups, {:.4} of the MACs",
                kept.iter().filter(|&&k| k).count(),
                kept.len(),
                left
            );
            assert!(left <= share && left > share - 0.25, "{model} {kind}: {left}");
            let expected = eval::run(&mask(graph.clone(), &groups, &kept), &x).unwrap();
            let got = eval::run(&removed, &x).unwrap();
            got.iter().zip(&expected).for_each(|(a, b)| assert!(relative_error(a, b) < 1e-5, "{model} {kind}"));
        }
    }
}
