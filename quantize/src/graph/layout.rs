//! Removal of transposes: they are moved through operators until they cancel, fold into weights, or reach an input or output.
