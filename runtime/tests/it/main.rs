//! The runtime against an independent reading of FORMAT.md, against random damage, and against golden files.

#[path = "../cases/mod.rs"]
mod cases;
mod damage;
mod golden;
mod reference;
