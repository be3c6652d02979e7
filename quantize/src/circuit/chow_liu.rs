//! The Chow-Liu tree of variables: the spanning tree with the most mutual information between neighbours.
//!
//! ```text
//! I(X, Y) = sum over x, y of p(x, y) * log(p(x, y) / (p(x) * p(y)))
//! ```
//!
//! It is estimated from values with their lowest bits cut off, with a pseudocount spread over all pairs of values.

use super::Data;
use rayon::prelude::*;

/// A rooted tree of variables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tree {
    /// Parent of each variable; none at the root.
    pub parents: Vec<Option<usize>>,
}

/// How mutual information is estimated.
#[derive(Clone, Copy, Debug)]
pub struct Estimate {
    /// Lowest bits that are cut off.
    pub shift: u32,
    /// Samples that are looked at, the first ones.
    pub samples: usize,
    /// In samples.
    pub pseudocount: f64,
}

impl Default for Estimate {
    fn default() -> Estimate {
        Estimate { shift: 4, samples: 5000, pseudocount: 0.1 }
    }
}

/// The tree, rooted at its centre, so that no other root makes it less deep.
pub fn chow_liu(data: &Data, estimate: Estimate) -> Tree {
    let samples = data.samples().min(estimate.samples);
    let column = |v: usize| data.values.iter().skip(v).step_by(data.variables).take(samples);
    let columns: Vec<Vec<u8>> = (0..data.variables).map(|v| column(v).map(|x| x >> estimate.shift).collect()).collect();
    let neighbours = spanning_tree(data.variables, |v| informations(&columns, v, estimate));
    root_at(&neighbours, centre(&neighbours))
}

/// The same variables, at most `log2` of their number deep: every subtree is cut at its centroid, which becomes the parent of the centroids of
/// what remains. Neighbours in the Chow-Liu tree may lie further apart here.
pub fn balanced(tree: &Tree) -> Tree {
    let neighbours = tree.neighbours();
    let mut parents = vec![None; tree.parents.len()];
    let mut is_cut = vec![false; tree.parents.len()];
    let mut parts: Vec<(usize, Option<usize>)> = tree.root().map(|root| (root, None)).into_iter().collect();
    while let Some((member, parent)) = parts.pop() {
        let centroid = centroid(&neighbours, &is_cut, member);
        parents[centroid] = parent;
        is_cut[centroid] = true;
        parts.extend(neighbours[centroid].iter().filter(|&&n| !is_cut[n]).map(|&n| (n, Some(centroid))));
    }
    Tree { parents }
}

impl Tree {
    /// The variable without a parent.
    pub fn root(&self) -> Option<usize> {
        self.parents.iter().position(Option::is_none)
    }

    /// Children of every variable, in increasing order.
    pub fn children(&self) -> Vec<Vec<usize>> {
        let mut children = vec![Vec::new(); self.parents.len()];
        for (v, parent) in self.parents.iter().enumerate() {
            parent.iter().for_each(|&p| children[p].push(v));
        }
        children
    }

    fn neighbours(&self) -> Vec<Vec<usize>> {
        let mut neighbours = self.children();
        for (v, parent) in self.parents.iter().enumerate() {
            neighbours[v].extend(parent);
        }
        neighbours
    }
}

/// Prim's algorithm on a complete graph whose edges from a vertex are computed when it joins the tree.
fn spanning_tree(variables: usize, edges: impl Fn(usize) -> Vec<f64>) -> Vec<Vec<usize>> {
    let mut neighbours = vec![Vec::new(); variables];
    let mut best = vec![(f64::NEG_INFINITY, 0); variables];
    let mut is_in = vec![false; variables];
    let mut joined = 0;
    for _ in 1..variables {
        is_in[joined] = true;
        for (v, weight) in edges(joined).into_iter().enumerate() {
            if weight > best[v].0 {
                best[v] = (weight, joined);
            }
        }
        let outside = (0..variables).filter(|&v| !is_in[v]);
        let Some(next) = outside.max_by(|&a, &b| best[a].0.total_cmp(&best[b].0).then(b.cmp(&a))) else { break };
        neighbours[next].push(best[next].1);
        neighbours[best[next].1].push(next);
        joined = next;
    }
    neighbours
}

/// Mutual information between `variable` and every other.
fn informations(columns: &[Vec<u8>], variable: usize, estimate: Estimate) -> Vec<f64> {
    let levels = (u8::MAX >> estimate.shift) as usize + 1;
    let information = |other: &Vec<u8>| {
        let mut joint = vec![0u32; levels * levels];
        for (&x, &y) in columns[variable].iter().zip(other) {
            joint[x as usize * levels + y as usize] += 1;
        }
        mutual_information(&joint, levels, estimate.pseudocount)
    };
    columns.par_iter().map(information).collect()
}

/// `sum p(x, y) log p(x, y)` less the same of both marginals.
fn mutual_information(joint: &[u32], levels: usize, pseudocount: f64) -> f64 {
    let total = joint.iter().sum::<u32>() as f64 + pseudocount;
    let share = pseudocount / joint.len() as f64;
    let term = |p: f64| if p > 0.0 { p * p.ln() } else { 0.0 };
    let empty = term(share / total);
    let (mut rows, mut columns) = (vec![0.0; levels], vec![0.0; levels]);
    let mut sum = 0.0;
    for (i, &n) in joint.iter().enumerate() {
        let p = (n as f64 + share) / total;
        rows[i / levels] += p;
        columns[i % levels] += p;
        sum += if n == 0 { empty } else { term(p) };
    }
    sum - rows.into_iter().chain(columns).map(term).sum::<f64>()
}

/// Leaves are taken off until one or two vertices are left.
fn centre(neighbours: &[Vec<usize>]) -> usize {
    let mut degree: Vec<usize> = neighbours.iter().map(Vec::len).collect();
    let mut leaves: Vec<usize> = (0..degree.len()).filter(|&v| degree[v] <= 1).collect();
    let mut left = degree.len();
    while left > 2 {
        left -= leaves.len();
        let mut next = Vec::new();
        for &n in leaves.iter().flat_map(|&v| &neighbours[v]) {
            degree[n] = degree[n].saturating_sub(1);
            if degree[n] == 1 {
                next.push(n);
            }
        }
        leaves = next;
    }
    leaves.into_iter().min().unwrap_or(0)
}

fn root_at(neighbours: &[Vec<usize>], root: usize) -> Tree {
    let mut parents = vec![None; neighbours.len()];
    let mut pending = vec![root];
    while let Some(v) = pending.pop() {
        let parent = parents[v];
        for &n in neighbours[v].iter().filter(|&&n| Some(n) != parent) {
            parents[n] = Some(v);
            pending.push(n);
        }
    }
    Tree { parents }
}

/// The vertex whose removal leaves no part larger than half, among those connected with `member`.
fn centroid(neighbours: &[Vec<usize>], is_cut: &[bool], member: usize) -> usize {
    let mut order = vec![(member, member)];
    let mut at = 0;
    while let Some(&(v, from)) = order.get(at) {
        order.extend(neighbours[v].iter().filter(|&&n| n != from && !is_cut[n]).map(|&n| (n, v)));
        at += 1;
    }
    let mut size = vec![0; neighbours.len()];
    for &(v, from) in order.iter().rev() {
        size[v] += 1;
        if v != from {
            size[from] += size[v];
        }
        if 2 * size[v] >= order.len() {
            return v;
        }
    }
    member
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    /// Variables in a chain, each like the one before it three times out of four.
    fn chain(variables: usize) -> Data {
        let mut random = Random::new(1, 0);
        let mut rows = Vec::new();
        for _ in 0..2000 {
            let mut x = random.bits() as u8 & 0xF0;
            for _ in 0..variables {
                x = if random.below(4) == 0 { random.bits() as u8 & 0xF0 } else { x };
                rows.push(x);
            }
        }
        Data::new(rows, variables)
    }

    #[test]
    fn a_chain_is_found_and_rooted_in_its_middle() {
        let tree = chow_liu(&chain(7), Estimate::default());
        let expected = [Some(1), Some(2), Some(3), None, Some(3), Some(4), Some(5)];
        assert_eq!(tree.parents, expected);
    }

    #[test]
    fn a_balanced_chain_is_a_binary_tree() {
        let tree = Tree { parents: (0..15).map(|v: usize| v.checked_sub(1)).collect() };
        let balanced = balanced(&tree);
        let depth = |mut v: usize| std::iter::from_fn(|| balanced.parents[v].inspect(|&p| v = p)).count();
        assert_eq!((0..15).map(depth).max(), Some(3));
    }
}
