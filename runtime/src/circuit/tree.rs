//! A circuit as integers: the bytes, and a view that was checked once. What they mean is [`super::walk`].
//!
//! Little-endian 32-bit words, at a multiple of 4: `PCT1`, number of variables, number of regions, a zero; then for each region in the order of
//! entering (a parent before its children, a subtree contiguous): variable + 1 or 0, index of the parent + 1 or 0, depth, units, values, first
//! word of the cumulative table, first word of the weights, and 0 for dense or 1 for sparse weights plus 256 times a value + 1 that a search looks
//! at first, or 0. Then tables and weights, nothing shared, in the order of the regions. Tables are `[values + 1][units]` words, cumulative
//! probabilities from 0 to 2^30. Dense weights are `[above][units]` 16-bit numbers, `above` being the units of the parent, 1 for the root; sparse
//! ones are `above + 1` words that say where each row begins among the edges, then all edges' units and then all their weights as 16-bit numbers,
//! each padded to whole words.

/// First word.
pub const MAGIC: u32 = u32::from_le_bytes(*b"PCT1");
/// Words before the regions.
pub const HEADER: usize = 4;
/// Words of a region.
pub const RECORD: usize = 8;
/// Bits of cumulative probabilities.
pub const CUMULATIVE_BITS: u32 = 30;
/// What the weights of a row sum to.
pub const ONE: u32 = 0xFFFF;
/// Largest number of units of a region.
pub const MAX_UNITS: usize = 1024;

/// A checked circuit.
#[derive(Clone, Copy, Debug)]
pub struct Tree<'a> {
    words: &'a [u32],
    records: &'a [[u32; RECORD]],
    variables: usize,
    depth: usize,
    units: usize,
}

/// A region's record.
#[derive(Clone, Copy)]
pub(super) struct Region<'a> {
    pub(super) variable: Option<usize>,
    pub(super) parent: Option<usize>,
    pub(super) depth: usize,
    /// Units of the parent.
    pub(super) above: usize,
    pub(super) units: usize,
    pub(super) values: usize,
    /// Where a search begins.
    pub(super) likely: Option<usize>,
    pub(super) table: &'a [u32],
    pub(super) weights: Weights<'a>,
}

#[derive(Clone, Copy)]
pub(super) enum Weights<'a> {
    Dense(&'a [u16]),
    Sparse { starts: &'a [u32], columns: &'a [u16], weights: &'a [u16] },
}

impl Weights<'_> {
    fn words(&self) -> usize {
        match self {
            Weights::Dense(weights) => weights.len().div_ceil(2),
            Weights::Sparse { starts, columns, weights } => {
                starts.len() + columns.len().div_ceil(2) + weights.len().div_ceil(2)
            }
        }
    }
}

impl<'a> Tree<'a> {
    /// Reads a circuit, or says what is wrong with it.
    pub fn new_checked(bytes: &'a [u8]) -> Result<Tree<'a>, &'static str> {
        let words: &[u32] = bytemuck::try_cast_slice(bytes).map_err(|_| "circuit: alignment or length")?;
        let (&[magic, variables, regions, _], rest) = words.split_first_chunk().ok_or("circuit: cut off")?;
        if magic != MAGIC {
            return Err("circuit: not of this version");
        }
        let (variables, regions) = (variables as usize, regions as usize);
        let records = rest.as_chunks().0.get(..regions).filter(|r| !r.is_empty()).ok_or("circuit: regions")?;
        let mut tree = Tree { words, records, variables, depth: 0, units: 0 };
        let (mut seen, mut end) = (0, HEADER + RECORD * regions);
        for i in 0..regions {
            let region = tree.check(i, &mut end)?;
            (tree.depth, tree.units) = (tree.depth.max(region.depth + 1), tree.units.max(region.units));
            seen += region.variable.is_some() as usize;
        }
        if seen == variables { Ok(tree) } else { Err("circuit: variables") }
    }

    /// Checks a region; what it refers to begins at `end` or later, so that the work of a walk is in proportion to the bytes.
    fn check(&self, index: usize, end: &mut usize) -> Result<Region<'a>, &'static str> {
        let record = self.records.get(index).ok_or("circuit: regions")?;
        let &[variable, _, depth, units, values, table, weights, _] = record;
        let is_sized = (1..=MAX_UNITS).contains(&(units as usize)) && values <= 256 && (values > 0) == (variable > 0);
        if !is_sized || variable as usize > self.variables {
            return Err("circuit: a region's sizes");
        }
        let region = self.region(index).ok_or("circuit: a region lies outside")?;
        if !self.is_inside(&region, index) || depth as usize > index {
            return Err("circuit: a region's parent");
        }
        let table_end = table as usize + region.table.len();
        if (table as usize) < *end || (weights as usize) < table_end {
            return Err("circuit: regions overlap");
        }
        *end = weights as usize + region.weights.words();
        let is_cumulative = |unit: usize| {
            let mut column = region.table.iter().skip(unit).step_by(region.units);
            column.clone().is_sorted()
                && column.next() == Some(&0)
                && column.next_back() == Some(&(1 << CUMULATIVE_BITS))
        };
        if region.variable.is_some() && !(0..region.units).all(is_cumulative) {
            return Err("circuit: a cumulative table");
        }
        if let Weights::Sparse { starts, columns, .. } = region.weights {
            let is_whole = starts.first() == Some(&0) && starts.is_sorted();
            if !is_whole || columns.iter().any(|&c| c as usize >= region.units) {
                return Err("circuit: sparse weights");
            }
        }
        Ok(region)
    }

    /// Whether the parent is open when the walk comes to the region: the one before it, or an ancestor of that.
    fn is_inside(&self, region: &Region, index: usize) -> bool {
        let mut open = index.checked_sub(1);
        while let Some(before) = open.and_then(|i| self.records.get(i)).filter(|r| r[2] as usize >= region.depth) {
            open = (before[1] as usize).checked_sub(1);
        }
        let depth = open.and_then(|i| self.records.get(i)).map_or(0, |r| r[2] as usize + 1);
        region.parent == open && region.depth == depth && open.is_some() == (index > 0)
    }

    pub(super) fn region(&self, index: usize) -> Option<Region<'a>> {
        let &[variable, parent, depth, units, values, table, weights, kind] = self.records.get(index)?;
        let (units, values) = (units as usize, values as usize);
        let parent = (parent as usize).checked_sub(1);
        let above = match parent {
            None => 1,
            Some(parent) => self.records.get(parent)?[3] as usize,
        };
        let length = if values > 0 { values.checked_add(1)?.checked_mul(units)? } else { 0 };
        let table = self.words.get(table as usize..)?.get(..length)?;
        let weights = self.words.get(weights as usize..)?;
        let halves = |words: &'a [u32], n: usize| bytemuck::cast_slice::<u32, u16>(words).get(..n);
        let weights = match kind & 0xFF {
            0 => Weights::Dense(halves(weights, above.checked_mul(units)?)?),
            _ => {
                let (starts, rest) = weights.split_at_checked(above.checked_add(1)?)?;
                let edges = *starts.last()? as usize;
                let (columns, rest) = rest.split_at_checked(edges.div_ceil(2))?;
                Weights::Sparse { starts, columns: halves(columns, edges)?, weights: halves(rest, edges)? }
            }
        };
        let variable = (variable as usize).checked_sub(1);
        let likely = (kind as usize >> 8).checked_sub(1).filter(|&likely| likely < values);
        Some(Region { variable, parent, depth: depth as usize, above, units, values, likely, table, weights })
    }

    /// Number of regions.
    pub(super) fn regions(&self) -> usize {
        self.records.len()
    }

    /// Regions on the longest way from the root.
    pub(super) fn depth(&self) -> usize {
        self.depth
    }

    /// Units of the largest region.
    pub(super) fn units(&self) -> usize {
        self.units
    }

    /// Number of variables of a sample.
    pub fn variables(&self) -> usize {
        self.variables
    }
}
