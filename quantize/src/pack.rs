//! Memory plan and file bytes.
