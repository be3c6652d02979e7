//! Constant folding and batch-norm folding.
