//! Every hyper-parameter and its default, in one place. A recipe is a TOML file; what it leaves out has the default, what the
//! command line says wins.
//!
//! ```toml
//! [preprocess]
//! scale = 0.00392156862745098   # x becomes (x * scale - mean) / std
//! mean = [0.485, 0.456, 0.406]
//! std = [0.229, 0.224, 0.225]
//! layout = "nhwc"
//!
//! [calibrate]
//! samples = 200
//!
//! [quantize]
//! weight_bits = 8
//! granularity = "channel"       # or "tensor"
//! activation_bits = 8           # absent: 8, or a supernet's widest
//! observer = "mse"              # or "min_max", { percentile = 0.0001 }; absent: the best of several
//! bias_correction = true        # absent: tried both ways
//! equalize = false              # absent: tried both ways
//!
//! rounding = "compensated"      # or "nearest"; of weights below 8 bits
//! bit_price = 0.0               # price of a bit a weight, for weights that are coded
//!
//! [quantize.layers."conv1"]     # by name, as `quantize inspect` lists them; `quantize search` writes these
//! weight_bits = 4
//! activation_bits = 8           # of what it reads
//!
//! [search]
//! bits = [8, 4, 2]              # absent: what the target's kernels know
//! candidates = 400
//!
//! [compress]
//! level = 5                     # 0: raw weights (default); 1 to 9: from fast to small
//! decode = "tile"               # or "ram", "flash"; absent: tile for a core, ram for portable files
//! max_decode_us = 2000          # absent: no budget
//! clock_mhz = 120               # absent: the target's
//!
//! [train]                       # `quantize train`; the same keys in [prune.train]
//! epochs = 10
//! batch = 64
//! rule = "adamw"                # or { sgd = { momentum = 0.9 } }
//! rate = 0.002                  # absent: the rule's usual
//! augment = { flip = true, crop = 2, cutout = 0, noise = 0.0, mixup = 0.0 }
//!
//! [elastic]                     # `quantize elastic`; [elastic.train] has the keys of [train]
//! bits = [8, 6, 5, 4, 3, 2]
//! activation_bits = [8]         # eight alone: calibrated afterwards, not trained
//! granularity = ["channel", "tensor"]
//! symmetry = ["symmetric", "asymmetric"]
//! guidance = 0.5                # share of the teacher in the loss of a sub-network
//! skewness = 1.0                # factors of the WDR loss
//! kurtosis = 0.015
//! coded_bits = 2.0              # mean of a weight of the narrowest sub-network once it is coded; absent: not bounded
//! layers = { conv1 = [4] }      # widths of single layers in place of bits
//!
//! [prune]
//! method = "wgsef"              # or "magnitude", "group_lasso", "reconstruct"
//! sparsify = 0.2                # share of the epochs under the pull; absent: 0.2, up to 0.4 for few steps.
//!                               # With "reconstruct", that train the whole network first; absent: 0
//! ```

use crate::data::Layout;
use crate::elastic::ElasticOptions;
use crate::pack::{CompressOptions, Residency};
use crate::prune::training::PruneOptions;
use crate::scheme::QuantOptions;
use crate::search::SearchOptions;
use crate::target::Target;
use crate::train::TrainOptions;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Everything that a build can be told.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Recipe {
    /// From the user's data to the ONNX input.
    pub preprocess: Preprocess,
    /// What is observed.
    pub calibrate: Calibrate,
    /// How numbers become integers.
    pub quantize: QuantOptions,
    /// How weights are coded.
    pub compress: Compress,
    /// How bits of layers are searched.
    pub search: SearchOptions,
    /// How a network is trained (`quantize train`).
    pub train: TrainOptions,
    /// How a network is pruned, and trained meanwhile.
    pub prune: PruneOptions,
    /// How a supernet is trained.
    pub elastic: ElasticOptions,
}

/// Coding of weights.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Compress {
    /// 0 for raw weights, 1 to 9 from fast to small.
    pub level: u8,
    /// Where weights are decoded to; absent: in tiles for a core, in RAM for portable files.
    pub decode: Option<Residency>,
    /// Microseconds that decoding may take by prediction: of a run in tiles, else once.
    pub max_decode_us: Option<f64>,
    /// Of the machine, for that; absent: the target's.
    pub clock_mhz: Option<f64>,
}

impl Compress {
    /// What the packer does for a target. A prediction counts an instruction as a clock.
    pub fn options(&self, target: &Target) -> Result<CompressOptions, RecipeError> {
        if self.level > 9 {
            return Err(RecipeError::Level { level: self.level });
        }
        let usual = if target.isa.layout().is_some() { Residency::Tile } else { Residency::Ram };
        let max_instructions = match (self.max_decode_us, self.clock_mhz.or(target.clock_mhz)) {
            (None, _) => None,
            (Some(_), None) => return Err(RecipeError::Clock { target: target.name.clone() }),
            (Some(us), Some(mhz)) if us >= 0.0 && mhz > 0.0 && (us * mhz).is_finite() => Some(us * mhz),
            (Some(us), Some(mhz)) => return Err(RecipeError::Budget { us, mhz }),
        };
        Ok(CompressOptions { level: self.level, residency: self.decode.unwrap_or(usual), max_instructions })
    }
}

/// `(x * scale - mean) / std`, per channel; empty lists are 0 and 1, one value serves all channels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Preprocess {
    /// Factor of the raw values.
    pub scale: f64,
    /// Subtracted after scaling.
    pub mean: Vec<f64>,
    /// Divisor.
    pub std: Vec<f64>,
    /// How images lie in the set; absent: by shape.
    pub layout: Option<Layout>,
}

impl Default for Preprocess {
    fn default() -> Preprocess {
        Preprocess { scale: 1.0, mean: Vec::new(), std: Vec::new(), layout: None }
    }
}

/// Calibration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Calibrate {
    /// Samples, evenly spaced over the set.
    pub samples: usize,
}

impl Default for Calibrate {
    fn default() -> Calibrate {
        Calibrate { samples: 200 }
    }
}

/// What is wrong with a recipe.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the messages name the fields
pub enum RecipeError {
    #[error("cannot read the recipe {file}: {source}")]
    Read { file: String, source: std::io::Error },
    #[error("recipe {file}: {what}")]
    Toml { file: String, what: String },
    #[error("preprocess.{field} has {given} values, the input has {channels} channels")]
    Channels { field: &'static str, given: usize, channels: usize },
    #[error("preprocess.{field} holds {value}; it must be finite{}", if *.field == "std" { " and not zero" } else { "" })]
    Value { field: &'static str, value: f64 },
    #[error("compress.level is {level}; choose 0 (raw weights) to 9 (smallest)")]
    Level { level: u8 },
    #[error("a budget for decoding needs a clock, which the target {target} does not name; give --clock-mhz")]
    Clock { target: String },
    #[error("a budget of {us} us at {mhz} MHz; both must be positive")]
    Budget { us: f64, mhz: f64 },
}

impl Recipe {
    /// Reads a recipe file.
    pub fn read(path: &Path) -> Result<Recipe, RecipeError> {
        let file = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|source| RecipeError::Read { file: file.clone(), source })?;
        toml::from_str(&text).map_err(|e| RecipeError::Toml { file, what: one_line(&e) })
    }
}

/// A TOML error without its drawing.
fn one_line(error: &toml::de::Error) -> String {
    error.message().lines().map(str::trim).collect::<Vec<_>>().join(" ")
}

impl Preprocess {
    /// `(scale, bias)` per channel with `y = x * scale + bias`; none if nothing changes.
    pub fn affine(&self, channels: usize) -> Result<Option<(Vec<f32>, Vec<f32>)>, RecipeError> {
        for (field, values) in [("mean", &self.mean), ("std", &self.std)] {
            if values.len() > 1 && values.len() != channels {
                return Err(RecipeError::Channels { field, given: values.len(), channels });
            }
            if let Some(&value) = values.iter().find(|v| !v.is_finite() || (field == "std" && **v == 0.0)) {
                return Err(RecipeError::Value { field, value });
            }
        }
        if !self.scale.is_finite() || self.scale == 0.0 {
            return Err(RecipeError::Value { field: "scale", value: self.scale });
        }
        let at = |values: &[f64], c: usize, default: f64| values.get(c).or(values.first()).copied().unwrap_or(default);
        let scale: Vec<f32> = (0..channels).map(|c| (self.scale / at(&self.std, c, 1.0)) as f32).collect();
        let bias: Vec<f32> = (0..channels).map(|c| (-at(&self.mean, c, 0.0) / at(&self.std, c, 1.0)) as f32).collect();
        let changes = scale.iter().any(|&s| s != 1.0) || bias.iter().any(|&b| b != 0.0);
        Ok(changes.then_some((scale, bias)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Recipes that are shipped are read, and say something that can be done.
    #[test]
    fn shipped_recipes() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes");
        let files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(!files.is_empty());
        for file in files {
            let recipe = Recipe::read(&file).unwrap();
            recipe.elastic.check().unwrap();
            assert_ne!(recipe, Recipe::default(), "{}", file.display());
        }
    }
}
