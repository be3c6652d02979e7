//! Bits of layers for a budget, as users meet them, on the shipped digits: promises kept, recipes that build the same file, and what is said where
//! nothing fits.

use crate::cli::{Folder, digits, quantize, refused};
use serde_json::Value;

/// Calibration samples, enough for so small a network.
const FEW: [&str; 2] = ["--samples", "60"];

fn data() -> [String; 3] {
    ["digits.onnx", "digits_train.npz", "digits_test.npz"].map(digits)
}

fn build(output: &str, more: &[&str]) -> (u8, String, String) {
    let [onnx, train, test] = data();
    let all = ["build", &onnx, "--data", &train, "--test", &test, "--scale", "1/16", "-o", output, "--json"];
    quantize(&[&all, &FEW[..], more].concat())
}

fn search(output: &str, more: &[&str]) -> (u8, String, String) {
    let [onnx, train, _] = data();
    quantize(
        &[&["search", &onnx, "--data", &train, "--scale", "1/16", "-o", output, "--json"], &FEW[..], more].concat(),
    )
}

fn report(result: (u8, String, String)) -> Value {
    assert_eq!(result.0, 0, "{}", result.2);
    serde_json::from_str(&result.1).unwrap()
}

fn bytes(path: &str) -> Vec<u8> {
    std::fs::read(path).unwrap()
}

#[test]
fn files_fit_and_are_better_than_layers_that_are_alike() {
    let folder = Folder::new();
    let (model, recipe, picture) = (folder.path("small.pith"), folder.path("small.toml"), folder.path("front.svg"));
    for (target, share) in [("portable", 0.7), ("cortex-m4", 0.85)] {
        let whole = report(build(&model, &["--target", target]))["file_bytes"].as_u64().unwrap();
        let limit = (whole as f64 * share) as u64;
        let limit_text = limit.to_string();
        let budget = ["--max-flash", &limit_text, "--target", target, "--candidates", "100"];
        let built = report(build(&model, &budget));
        assert!(bytes(&model).len() as u64 <= limit, "{built}");
        let accuracy = |side: &str| built["accuracy"][side].as_f64().unwrap();
        assert!(accuracy("int8") > accuracy("float") - 0.02, "{built}");
        // The recipe builds the very same file.
        let found = report(search(&recipe, &[&budget[..], &["--svg", &picture]].concat()));
        let predicted = found["best"]["flash"].as_u64().unwrap();
        assert!(bytes(&model).len() as u64 <= predicted && predicted <= limit);
        let same = folder.path("same.pith");
        report(build(&same, &["--recipe", &recipe, "--target", target]));
        assert_eq!(bytes(&model), bytes(&same), "{target}");
        assert!(String::from_utf8(bytes(&picture)).unwrap().starts_with("<svg"));
        // Mixtures beat widths that all layers share: fewer bytes and a smaller error.
        let number = |c: &Value, key: &str| c[key].as_f64().unwrap();
        let (front, alike) = (found["front"].as_array().unwrap(), found["uniform"].as_array().unwrap());
        let beaten = |alike: &&Value| {
            let beats =
                |c: &Value| number(c, "flash") < number(alike, "flash") && number(c, "error") < number(alike, "error");
            front.iter().any(beats)
        };
        let count = alike.iter().filter(beaten).count();
        assert!(count >= 1 && count >= alike.len() / 3, "{count} of {alike:?}");
        for pair in front.windows(2) {
            assert!(number(&pair[0], "flash") < number(&pair[1], "flash"));
            assert!(number(&pair[0], "error") > number(&pair[1], "error"));
        }
        let instructions = found["best"]["instructions"].as_u64();
        assert_eq!(instructions.is_some(), target == "cortex-m4", "kernels of the M4 were counted");
    }
}

#[test]
fn a_least_accuracy_is_reached_with_few_bytes() {
    let folder = Folder::new();
    let recipe = folder.path("small.toml");
    let found = report(search(&recipe, &["--min-accuracy", "0.98", "--candidates", "100"]));
    let alike = |bits: u64| {
        let all = found["uniform"].as_array().unwrap().iter();
        all.clone().find(|c| c["bits"][0].as_u64() == Some(bits)).unwrap()["flash"].as_u64().unwrap()
    };
    assert!(found["best"]["accuracy"].as_f64().unwrap() >= 0.98);
    assert!(found["best"]["flash"].as_u64().unwrap() < alike(8), "{found}");
}

#[test]
fn cycles_of_a_core_are_a_budget() {
    let folder = Folder::new();
    let recipe = folder.path("small.toml");
    let target = ["--target", "nucleo-l4r5zi", "--candidates", "60"];
    let all = report(search(&recipe, &[&target[..], &["--max-cycles", "100M"]].concat()));
    let most = all["uniform"].as_array().unwrap().iter().map(|c| c["instructions"].as_u64().unwrap()).max().unwrap();
    let least = all["uniform"].as_array().unwrap().iter().map(|c| c["instructions"].as_u64().unwrap()).min().unwrap();
    let limit = (most + least) / 2;
    let found = report(search(&recipe, &[&target[..], &["--max-cycles", &limit.to_string()]].concat()));
    assert!(found["best"]["instructions"].as_u64().unwrap() <= limit);
    // Weights that are decoded at every run take that on top.
    let coded = folder.path("coded.toml");
    std::fs::write(&coded, "[compress]\nlevel = 6\n").unwrap();
    let all = report(search(&recipe, &[&target[..], &["--max-cycles", "100M", "--recipe", &coded]].concat()));
    let widest = all["uniform"][0]["instructions"].as_u64().unwrap();
    assert!(widest > most + most / 10, "{widest} after {most}");
}

#[test]
fn coded_files_fit_by_a_price_of_bits() {
    let folder = Folder::new();
    let (model, same) = (folder.path("small.pith"), folder.path("same.pith"));
    let plain = report(build(&model, &["--compress", "6"]))["file_bytes"].as_u64().unwrap();
    let limit = plain * 3 / 4;
    let budget = ["--compress", "6", "--max-flash", &limit.to_string()];
    let built = report(build(&model, &budget));
    let bytes_of = bytes(&model).len() as u64;
    assert!(bytes_of <= limit && bytes_of > limit * 9 / 10, "{bytes_of} of {limit}");
    assert!(built["accuracy"]["int8"].as_f64().unwrap() > 0.97, "{built}");
    report(build(&same, &budget));
    assert_eq!(bytes(&model), bytes(&same), "equal input, equal file");
    let recipe = folder.path("price.toml");
    std::fs::write(&recipe, "[quantize]\nbit_price = 2.0").unwrap();
    let output = folder.path("refused.pith");
    refused(build(&output, &["--recipe", &recipe, "--compress", "6"]), &["quantize.bit_price is 2"], Some(&output));
    refused(build(&output, &["--bit-price", "0.01"]), &["--bit-price", "--compress"], Some(&output));
}

#[test]
fn what_cannot_be_met_ends_with_1_and_says_what_stands_in_the_way() {
    let folder = Folder::new();
    let output = folder.path("small.pith");
    let unmet = |result: (u8, String, String), parts: &[&str]| {
        assert_eq!((result.0, result.1.as_str()), (1, ""), "{}", result.2);
        assert_eq!(result.2.trim_end().lines().count(), 1, "{}", result.2);
        parts.iter().for_each(|part| assert!(result.2.contains(part), "no '{part}' in: {}", result.2));
        assert!(!std::path::Path::new(&output).exists());
    };
    unmet(build(&output, &["--max-flash", "1K"]), &["the smallest file takes", "1,000 are allowed", "largest layers"]);
    unmet(build(&output, &["--max-flash", "1K", "--compress", "6"]), &["the smallest coded file takes"]);
    unmet(build(&output, &["--max-ram", "100", "--candidates", "1"]), &["B of RAM", "100 are allowed"]);
    let cycles = ["--max-cycles", "10", "--target", "cortex-m4", "--candidates", "1"];
    unmet(build(&output, &cycles), &["the fastest candidate takes", "slowest layer"]);
    let board = folder.path("tiny.toml");
    std::fs::write(&board, "core = \"cortex-m0\"\nflash_bytes = 2000\nram_bytes = 100000").unwrap();
    unmet(build(&output, &["--target", &board]), &["of flash, tiny has 2000 B"]);
}

#[test]
fn bad_choices_are_refused() {
    let folder = Folder::new();
    let output = folder.path("small.pith");
    let recipe = folder.path("wrong.toml");
    std::fs::write(&recipe, "[quantize.layers.nowhere]\nweight_bits = 4").unwrap();
    refused(build(&output, &["--recipe", &recipe]), &["'nowhere'", "no layer with weights"], Some(&output));
    std::fs::write(&recipe, "[quantize.layers.nowhere]\nweight_bits = 9").unwrap();
    refused(build(&output, &["--recipe", &recipe]), &["weight_bits is 9"], Some(&output));
    refused(build(&output, &["--max-cycles", "5M"]), &["kernels were counted"], Some(&output));
    std::fs::write(&recipe, "[quantize]\nrounding = \"nearest\"\nbit_price = 0.01").unwrap();
    refused(build(&output, &["--recipe", &recipe, "--compress", "6"]), &["does nothing with"], Some(&output));
    refused(build(&output, &["--max-flash", "4K", "--bits", "8"]), &["8 bits alone"], Some(&output));
    let (code, _, err) = build(&output, &["--min-accuracy", "90"]);
    assert!(code == 2 && err.contains("90 is no share"), "{err}");
    refused(build(&output, &["--bits", "4"]), &["--max-flash"], Some(&output));
    refused(search(&output, &[]), &["no budget", "--max-flash"], Some(&output));
    refused(build(&output, &["--epochs", "3"]), &["need a budget to prune to"], Some(&output));
}
