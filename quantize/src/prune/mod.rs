//! Structured pruning with the Weighted Group Sparse Envelope Function (WGSEF, arXiv 2212.12921).
//!
//! Groups of parameters that the hardware can do without ([`groups`]) are driven to zero during training by a proximal operator
//! ([`envelope`]) until a sparsity fixed in advance is reached, and then leave the graph physically ([`remove`]).

pub mod envelope;
pub mod groups;
pub mod reconstruct;
pub mod trajectory;
