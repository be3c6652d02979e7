//! `quantize train` and `quantize prune` as users meet them, on the shipped digits: results, budgets met exactly, files that other verbs
//! read, equal files for equal seeds, and one clear line for bad input. Forward passes against tract on real networks.

use crate::cli::{Folder, digits, quantize, refused};
use ndarray::ArrayD;
use pith_tests::{relative_error, shared};
use quantize::build::input_slots;
use quantize::data;
use quantize::graph::trainable;
use quantize::onnx::{Oracle, import};
use quantize::train::{Batch, Device, Moments, Net};
use serde_json::Value;

fn prune(output: &str, more: &[&str]) -> (u8, String, String) {
    let (model, data) = (digits("digits.onnx"), digits("digits_train.npz"));
    quantize(&[&["prune", &model, "--data", &data, "--scale", "1/16", "-o", output], more].concat())
}

fn report(result: (u8, String, String)) -> Value {
    assert_eq!(result.0, 0, "{}", result.2);
    serde_json::from_str(&result.1).unwrap()
}

#[test]
fn a_budget_of_macs_is_met_and_the_network_still_knows_digits() {
    let folder = Folder::new();
    let (model, picture) = (folder.path("small.onnx"), folder.path("run.svg"));
    let test = digits("digits_test.npz");
    let args = ["--macs", "0.5", "--epochs", "6", "--test", &test, "--svg", &picture, "--json"];
    let run = report(prune(&model, &args));
    let side = |side: &str, key: &str| run[side][key].as_f64().unwrap();
    for key in ["parameters", "macs", "arena_bytes", "weight_bytes"] {
        assert!(side("after", key) < side("before", key), "{key}: {run}");
    }
    assert!(side("after", "macs") <= 0.5 * side("before", "macs"));
    assert!(side("after", "accuracy") > side("before", "accuracy") - 0.03, "{}", run["after"]);
    assert!(std::fs::read_to_string(&picture).unwrap().starts_with("<svg"));
    // The file is an ordinary network for every other verb.
    let packed = folder.path("small.pith");
    let built =
        quantize(&["build", &model, "--data", &digits("digits_train.npz"), "--scale", "1/16", "-o", &packed, "--json"]);
    let built = report(built);
    assert_eq!(built["macs"].as_f64().unwrap(), side("after", "macs"));
    let again = folder.path("again.onnx");
    report(prune(&again, &["--macs", "0.5", "--epochs", "6", "--json"]));
    assert_eq!(std::fs::read(&model).unwrap(), std::fs::read(&again).unwrap(), "equal seeds, equal files");
}

#[test]
fn every_kind_of_group_and_budget() {
    let folder = Folder::new();
    let model = folder.path("small.onnx");
    for args in [
        &["--groups", "filter", "--per-layer", "0.5"][..],
        &["--groups", "channel", "--sparsity", "0.5", "--method", "group-lasso"],
        &["--groups", "block=2x4", "--sparsity", "0.75"],
        &["--groups", "weight", "--parameters", "0.3", "--method", "magnitude"],
        &["--groups", "filter", "--bytes", "2K", "--post-training"],
        &["--groups", "weight", "--sparsity", "0.5", "--method", "reconstruct", "--sparsify", "0.5"],
        &["--groups", "block", "--macs", "0.5", "--post-training"],
    ] {
        let epochs = if args.contains(&"--post-training") { &[][..] } else { &["--epochs", "1"] };
        let run = report(prune(&model, &[args, epochs, &["--json"]].concat()));
        let kept: u64 = run["layers"].as_array().unwrap().iter().map(|l| l["after"].as_u64().unwrap()).sum();
        let all: u64 = run["layers"].as_array().unwrap().iter().map(|l| l["before"].as_u64().unwrap()).sum();
        let share = kept as f64 / all as f64;
        match args[1] {
            "block" => {
                let macs = |side: &str| run[side]["macs"].as_u64().unwrap();
                assert!(2 * macs("after") <= macs("before"), "{} of {}", macs("after"), macs("before"));
            }
            "block=2x4" => assert!(share <= 0.25, "{args:?}: {kept} of {all}"),
            _ if args.contains(&"--bytes") => assert!(run["after"]["weight_bytes"].as_u64().unwrap() <= 2000, "{run}"),
            _ => assert!(share <= 0.5, "{args:?}: {kept} of {all}"),
        }
    }
}

#[test]
fn build_prunes_first() {
    let folder = Folder::new();
    let model = folder.path("small.pith");
    let (onnx, data, test) = (digits("digits.onnx"), digits("digits_train.npz"), digits("digits_test.npz"));
    let all = ["build", &onnx, "--data", &data, "--test", &test, "--scale", "1/16", "-o", &model, "--json"];
    let dense = report(quantize(&all));
    let pruned = report(quantize(&[&all[..], &["--macs", "0.5", "--epochs", "4"]].concat()));
    assert!(2 * pruned["macs"].as_u64().unwrap() <= dense["macs"].as_u64().unwrap());
    assert!(pruned["accuracy"]["int8"].as_f64().unwrap() > 0.9);
}

#[test]
fn a_network_from_scratch() {
    let folder = Folder::new();
    let (model, checkpoint) = (folder.path("scratch.onnx"), folder.path("run.npz"));
    let (data, test) = (digits("digits_train.npz"), digits("digits_test.npz"));
    let args = ["train", "ds_cnn", "--data", &data, "--test", &test, "--scale", "1/16", "--epochs", "4", "-o", &model];
    let run = report(quantize(&[&args[..], &["--checkpoint", &checkpoint, "--rate", "0.01", "--json"]].concat()));
    assert!(run["accuracy_before"].as_f64().unwrap() < 0.3, "{run}");
    assert!(run["accuracy_after"].as_f64().unwrap() > 0.9, "{run}");
    let first = std::fs::read(&model).unwrap();
    // Resuming a run that is done changes nothing.
    report(quantize(&[&args[..], &["--checkpoint", &checkpoint, "--resume", "--rate", "0.01", "--json"]].concat()));
    assert_eq!(std::fs::read(&model).unwrap(), first);
    let other = [&args[..], &["--checkpoint", &checkpoint, "--resume", "--rate", "0.02"]].concat();
    refused(quantize(&other), &["run.npz", "other options"], None);
}

#[test]
fn bad_input_is_one_line() {
    let folder = Folder::new();
    let output = folder.path("small.onnx");
    let output = output.as_str();
    refused(prune(output, &[]), &["no budget", "--macs"], Some(output));
    refused(prune(output, &["--macs", "0.0001"]), &["cannot be met"], Some(output));
    refused(prune(output, &["--macs", "0.5", "--rate", "1e30", "--epochs", "1"]), &["no longer finite"], Some(output));
    refused(prune(output, &["--macs", "0.5", "--batch", "0"]), &["'batch'"], Some(output));
    let at_once = ["--macs", "0.5", "--method", "reconstruct"];
    refused(
        prune(output, &[&at_once[..], &["--svg", &folder.path("run.svg")]].concat()),
        &["--layers-svg"],
        Some(output),
    );
    let (code, _, err) = prune(output, &["--bytes", "0.5"]);
    assert!(code == 2 && err.contains("such as 60K") && !std::path::Path::new(output).exists(), "{err}");
    let (model, x) = (digits("digits.onnx"), folder.path("x.npy"));
    let zeros = quantize::npy::encode("<f4", &[20, 8, 8], &[0; 20 * 64 * 4]);
    std::fs::write(&x, zeros).unwrap();
    let unlabelled = quantize(&["train", &model, "--data", &x, "-o", output]);
    refused(unlabelled, &["no labels"], Some(output));
    refused(quantize(&["train", "resnet9", "--data", &x, "-o", output]), &["resnet9"], Some(output));
    // Pruning needs none: the original teaches.
    let (code, _, err) = quantize(&["prune", &model, "--data", &x, "--macs", "0.6", "--epochs", "1", "-o", output]);
    assert_eq!(code, 0, "{err}");
}

/// Training's forward pass, batch norms at their running moments, is what tract computes.
#[test]
fn forward_passes_agree_with_tract() {
    for model in ["ic_resnet8", "kws_ref", "ad01", "fmnist_cnn_bn", "resnet20_cifar10"] {
        let Some(path) = shared(&format!("models/{model}.onnx")) else { return };
        let golden = shared(&format!("golden/{model}.npz")).unwrap();
        let graph = trainable(import(&path).unwrap());
        let slots = input_slots(&graph);
        let set = data::load(&golden, &slots, None, 0).unwrap();
        let samples = &set.samples[..set.samples.len().min(4)];
        let inputs = samples.iter().flat_map(|s| s[0].iter().copied()).collect();
        let net = Net::new(&graph, &Device::cpu()).unwrap();
        let batch = Batch { size: samples.len(), inputs: vec![inputs] };
        let got = net.predict(&graph.theta(), &Moments::of(&graph), &batch).swap_remove(0);
        let oracle = Oracle::load(&path).unwrap();
        let each = got.len() / samples.len();
        for (sample, got) in samples.iter().zip(got.chunks_exact(each)) {
            let expected = oracle.run(&[slots[0].to_onnx(&sample[0])]).unwrap().swap_remove(0);
            let got = ArrayD::from_shape_vec(expected.raw_dim(), got.to_vec()).unwrap();
            let error = relative_error(&got, &expected);
            assert!(error < 1e-4, "{model}: {error}");
        }
    }
}
