//! The price of bits that makes a coded file fit.
//!
//! Where weights are coded, widths say little about bytes; what integers weights take does. The price of a bit ([`crate::scheme::QuantOptions::bit_price`]) decides
//! that for all layers at once, so that every layer gives up what costs the outputs least, and a file shrinks as it rises: a bisection finds it.

use crate::build::{BuildError, BuildOptions, Built, Prepared, finish};
use crate::recipe::Recipe;
use ndarray::ArrayD;

/// Prices between which the search looks: at the least hardly a bit is saved, at the most nothing is right any more.
const LEAST: f64 = 1e-4;
const MOST: f64 = 0.5;

/// Halvings of that range.
const STEPS: usize = 7;

/// What was found.
#[derive(Debug)]
pub enum Fit {
    /// The largest file that fits, with its price.
    Found(f64, Box<Built>),
    /// Bytes of the smallest file that there is.
    Least(u64),
}

/// Builds files at one price after another; `progress` gets builds done, and how many there are.
pub fn fit_price(
    prepared: &Prepared,
    samples: &[Vec<ArrayD<f32>>],
    input_is_u8: &[bool],
    recipe: &Recipe,
    options: BuildOptions,
    limit: u64,
    progress: &(dyn Fn(usize, usize) + Sync),
) -> Result<Fit, BuildError> {
    let built = |price: f64, done: usize| {
        let mut recipe = recipe.clone();
        recipe.quantize.bit_price = price;
        let built = finish(prepared.clone(), samples, input_is_u8, &recipe, options, &|_, _| ());
        progress(done, STEPS + 2);
        built
    };
    let bytes = |built: &Built| built.packed.bytes.len() as u64;
    let free = built(recipe.quantize.bit_price, 1)?;
    if bytes(&free) <= limit {
        return Ok(Fit::Found(recipe.quantize.bit_price, Box::new(free)));
    }
    let smallest = built(MOST, 2)?;
    if bytes(&smallest) > limit {
        return Ok(Fit::Least(bytes(&smallest)));
    }
    let (mut low, mut high) = (recipe.quantize.bit_price.max(LEAST).ln(), MOST.ln());
    let mut best = (MOST, smallest);
    for step in 0..STEPS {
        let middle = (low + high) / 2.0;
        // A price that a recipe can hold in a few digits.
        let price = (middle.exp() * 1e6).round() / 1e6;
        let tried = built(price, 3 + step)?;
        match bytes(&tried) <= limit {
            true => {
                high = middle;
                if bytes(&tried) >= bytes(&best.1) {
                    best = (price, tried);
                }
            }
            false => low = middle,
        }
    }
    Ok(Fit::Found(best.0, Box::new(best.1)))
}
