//! The runtime against an independent reading of FORMAT.md, against random damage, and against golden files.

mod damage;
mod golden;
mod lanes;
mod model;
mod reference;
