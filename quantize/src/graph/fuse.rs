//! Activation fusion: scalar subgraphs become one `Map`, clamps become part of the operator before them.
