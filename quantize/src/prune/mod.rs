//! Structured pruning with the Weighted Group Sparse Envelope Function (WGSEF, arXiv 2212.12921).
//!
//! Groups of parameters that the hardware can do without ([`groups`]) are driven to zero during training by a proximal operator
//! ([`envelope`]) until a sparsity fixed in advance is reached, and then leave the graph physically ([`remove`]).

mod branches;
mod channels;
pub mod cost;
pub mod envelope;
pub mod groups;
#[cfg(test)]
mod networks;
pub mod reconstruct;
mod redundancy;
pub mod remove;
pub mod select;
pub mod training;
pub mod trajectory;
