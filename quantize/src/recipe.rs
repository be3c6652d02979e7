//! Every hyper-parameter and its default.
