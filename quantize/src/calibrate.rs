//! Observers: what real inputs say about the range of every activation.
