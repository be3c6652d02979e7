//! Groups of parameters that vanish together, named by what the hardware can skip.
//!
//! A group is a set of indices into the flat vector of [`crate::graph::Graph::theta`]; groups are disjoint. Lists are stored one
//! after another, because single weights make hundreds of thousands of groups.

/// What a group is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An output channel with everything that makes it: filters, biases, batch norms and PReLU slopes of all layers that are
    /// coupled by additions, depthwise layers, concatenations.
    Filter,
    /// All weights that read one input channel, of all layers that read the same coupled channel.
    Channel,
    /// One kernel position of one input channel, across all filters of a layer.
    Shape,
    /// `rows` filters by `cols` consecutive inputs of the weight matrix `[oc, kh kw ic]`, as a kernel skips them.
    Block {
        /// Filters.
        rows: usize,
        /// Consecutive weights of a filter.
        cols: usize,
    },
    /// A whole residual branch.
    Depth,
    /// A single weight.
    Weight,
}

/// Disjoint groups of parameters.
#[derive(Clone, Debug)]
pub struct Groups {
    /// What they are.
    pub kind: Kind,
    /// Names of the layers (first weighted node of a coupled set) that the groups belong to.
    pub layers: Vec<String>,
    /// Layer of every group, an index into `layers`; groups of a layer stand together.
    pub layer: Vec<usize>,
    /// Group `j` has the elements `elements[starts[j]..starts[j + 1]]`.
    pub starts: Vec<usize>,
    /// Indices into the flat parameter vector.
    pub elements: Vec<usize>,
}

impl Groups {
    /// Number of groups.
    pub fn len(&self) -> usize {
        self.layer.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.layer.is_empty()
    }

    /// Parameter indices of group `j`.
    pub fn of(&self, j: usize) -> &[usize] {
        &self.elements[self.starts[j]..self.starts[j + 1]]
    }

    /// Euclidean norm of every group.
    pub fn norms(&self, theta: &[f32]) -> Vec<f64> {
        let square = |&i: &usize| theta[i] as f64 * theta[i] as f64;
        (0..self.len()).map(|j| self.of(j).iter().map(square).sum::<f64>().sqrt()).collect()
    }
}
