//! The networks that tests and the README's table use, with their sets and preprocessing; data lie in `shared/data` beside the
//! repository (or under `PITH_SHARED`), but for the shipped example.

use crate::root;
use quantize::recipe::Recipe;
use std::path::PathBuf;

/// A network and what it needs.
#[derive(Clone, Copy, Debug)]
pub struct Network {
    /// `models/NAME.onnx`.
    pub model: &'static str,
    /// `sets/NAME.npz` that calibrates.
    pub calibration: &'static str,
    /// `sets/NAME.npz` that judges.
    pub test: &'static str,
    /// Preprocessing.
    pub scale: f64,
    /// Preprocessing.
    pub mean: &'static [f64],
    /// Preprocessing.
    pub std: &'static [f64],
    /// Promise: bytes of arena.
    pub max_arena: usize,
}

impl Network {
    /// No preprocessing, no promise.
    pub const PLAIN: Network =
        Network { model: "", calibration: "", test: "", scale: 1.0, mean: &[], std: &[], max_arena: usize::MAX };

    /// Defaults with this preprocessing.
    pub fn recipe(&self) -> Recipe {
        let mut recipe = Recipe::default();
        recipe.preprocess.scale = self.scale;
        recipe.preprocess.mean = self.mean.to_vec();
        recipe.preprocess.std = self.std.to_vec();
        recipe
    }

    /// Its preprocessing as the command takes it.
    pub fn arguments(&self) -> Vec<String> {
        let list = |values: &[f64]| values.iter().map(f64::to_string).collect::<Vec<_>>().join(",");
        let mut options = vec!["--scale".to_string(), self.scale.to_string()];
        for (name, values) in [("--mean", self.mean), ("--std", self.std)] {
            if !values.is_empty() {
                options.extend([name.to_string(), list(values)]);
            }
        }
        options
    }
}

/// Networks that are judged by accuracy.
pub const CLASSIFIERS: [Network; 6] = [
    Network {
        model: "ic_resnet8",
        calibration: "cifar10_train",
        test: "cifar10_lossless_test_200",
        max_arena: 50_000,
        ..Network::PLAIN
    },
    Network {
        model: "ic_resnet8_nchw",
        calibration: "cifar10_train",
        test: "cifar10_lossless_test_200",
        max_arena: 50_000,
        ..Network::PLAIN
    },
    Network {
        model: "kws_ref",
        calibration: "kws_calib_200",
        test: "kws_test_800",
        max_arena: 16_500,
        ..Network::PLAIN
    },
    Network {
        model: "resnet20_cifar10",
        calibration: "cifar10_train",
        test: "cifar10_lossless_test_200",
        scale: 1.0 / 255.0,
        mean: &[0.485, 0.456, 0.406],
        std: &[0.229, 0.224, 0.225],
        ..Network::PLAIN
    },
    Network {
        model: "fmnist_cnn_bn",
        calibration: "fashion_train",
        test: "fashion_test",
        scale: 1.0 / 255.0,
        ..Network::PLAIN
    },
    Network { model: "mnist_zoo", calibration: "mnist_train", test: "mnist_test", ..Network::PLAIN },
];

/// Networks that `bench` times; an autoencoder and one with batch norm already folded are not among the classifiers.
pub const BENCHED: [Network; 6] = [
    CLASSIFIERS[0],
    CLASSIFIERS[2],
    Network { model: "ad01", calibration: "../golden/ad01", ..Network::PLAIN },
    CLASSIFIERS[3],
    Network { model: "fmnist_cnn", ..CLASSIFIERS[4] },
    CLASSIFIERS[5],
];

/// A file of the shared data, if it is there.
pub fn shared(file: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("PITH_SHARED").map_or_else(|| root().join("../shared"), PathBuf::from);
    Some(folder.join("data").join(file)).filter(|path| path.exists())
}
