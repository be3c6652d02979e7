//! One integration binary; a module an area. Tests that need data outside of the repository skip, saying so.

mod import;
mod pipeline;
