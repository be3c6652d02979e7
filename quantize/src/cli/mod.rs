//! The `quantize` command: one file a verb.
