//! Probabilistic circuits on the host: models are learned and chosen here, and everything that drives the coder is computed by [`pith::circuit`].

pub mod weights;
