//! Recipes.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &str| {
    if let Ok(recipe) = toml::from_str::<quantize::recipe::Recipe>(data) {
        let _ = recipe.preprocess.affine(3);
    }
});
