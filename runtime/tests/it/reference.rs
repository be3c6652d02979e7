//! Every operator against [`crate::cases`], for every instruction set; what the desktop lacks kernels for takes the generic ones.

use crate::cases::model::Random;
use crate::cases::{FAMILIES, ISAS};
use crate::lanes::run_everywhere;

/// Rounds per family.
const ROUNDS: usize = if cfg!(miri) { 3 } else { 300 };

#[test]
fn operators_give_what_the_format_says() {
    std::thread::scope(|scope| {
        for (seed, (name, family)) in (1..).zip(FAMILIES) {
            scope.spawn(move || {
                let mut r = Random(seed);
                for round in 0..ROUNDS {
                    for case in family(&mut r, round, &ISAS) {
                        let got = run_everywhere(&case.model, &case.inputs);
                        assert_eq!(got, case.expected, "{name}, round {round}: {}", case.what);
                    }
                }
            });
        }
    });
}
