//! Inner loops. [`generic`] defines the meaning of every one. Kernels for an instruction set will stand in files beside it, with
//! the same names and the same bytes, chosen by a table of function pointers that is filled from `generic` first.

pub mod generic;
