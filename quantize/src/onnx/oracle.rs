//! The original network in float, run by tract.

use ndarray::ArrayD;
use std::path::Path;
use std::sync::Arc;
use tract_onnx::prelude::*;
use tract_onnx::tract_hir::infer::Factoid;
use tract_onnx::tract_hir::internal::DimLike;

/// What tract says when it cannot run a file.
#[derive(Debug, thiserror::Error)]
#[error("tract cannot run {path}: {what}")]
pub struct OracleError {
    /// The file.
    pub path: String,
    /// tract's words.
    pub what: String,
}

/// An ONNX file, ready to run with a batch of 1.
#[derive(Clone, Debug)]
pub struct Oracle {
    path: String,
    plan: Arc<TypedSimplePlan>,
}

impl Oracle {
    /// Loads the file.
    pub fn load(path: &Path) -> Result<Oracle, OracleError> {
        let shown = path.display().to_string();
        let plan = load(path).map_err(|e| OracleError { path: shown.clone(), what: format!("{e:#}") })?;
        Ok(Oracle { path: shown, plan })
    }

    /// Outputs in the file's own axes for inputs in the file's own axes.
    pub fn run(&self, inputs: &[ArrayD<f32>]) -> Result<Vec<ArrayD<f32>>, OracleError> {
        self.try_run(inputs).map_err(|e| OracleError { path: self.path.clone(), what: format!("{e:#}") })
    }

    fn try_run(&self, inputs: &[ArrayD<f32>]) -> TractResult<Vec<ArrayD<f32>>> {
        let inputs = inputs.iter().map(|x| {
            let values: Vec<f32> = x.iter().copied().collect();
            Ok(Tensor::from_shape(x.shape(), &values)?.into_tvalue())
        });
        let outputs = self.plan.run(inputs.collect::<TractResult<_>>()?)?;
        let arrays = outputs.iter().map(|t| {
            let t = t.cast_to::<f32>()?;
            Ok(ArrayD::from_shape_vec(t.shape(), t.try_as_plain_ram()?.as_slice::<f32>()?.to_vec())?)
        });
        arrays.collect()
    }
}

fn load(path: &Path) -> TractResult<Arc<TypedSimplePlan>> {
    let mut model =
        tract_onnx::onnx().with_ignore_output_shapes(true).with_ignore_value_info(true).model_for_path(path)?;
    for i in 0..model.input_outlets()?.len() {
        let mut fact = model.input_fact(i)?.clone();
        let shape =
            fact.shape.dims().map(|d| d.concretize().and_then(|d| d.to_usize().ok()).unwrap_or(1)).collect::<Vec<_>>();
        fact = fact.with_shape(shape);
        model.set_input_fact(i, fact)?;
    }
    model.into_optimized()?.into_runnable()
}
