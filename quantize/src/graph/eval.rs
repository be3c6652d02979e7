//! The float meaning of a graph: the reference that calibration observes and tests compare with.
