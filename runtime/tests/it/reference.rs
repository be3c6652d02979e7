//! Every operator against [`crate::cases`], for every instruction set; what the desktop lacks kernels for takes the generic ones.

use crate::cases::model::{Memory, Random};
use crate::cases::{Case, FAMILIES, ISAS};
use pith::{Engine, Model};

/// Rounds per family.
const ROUNDS: usize = if cfg!(miri) { 3 } else { 300 };

/// Runs the model on its inputs; memory beyond the arena must stay as it was.
fn run(case: &Case) -> Vec<i8> {
    let mut file = Memory::of(&case.model);
    let model = Model::parse(file.bytes()).expect("a valid model");
    let needed = model.arena_bytes();
    let mut arena = Memory::new(needed + 64, 0xA5);
    let mut engine = Engine::new(&model, arena.bytes()).unwrap();
    for (i, x) in case.inputs.iter().enumerate() {
        engine.input(i).copy_from_slice(x);
    }
    engine.run();
    let output = engine.output(0).to_vec();
    assert!(arena.bytes()[needed..].iter().all(|&v| v == 0xA5), "memory beyond the arena was written");
    output
}

#[test]
fn operators_give_what_the_format_says() {
    std::thread::scope(|scope| {
        for (seed, (name, family)) in (1..).zip(FAMILIES) {
            scope.spawn(move || {
                let mut r = Random(seed);
                for round in 0..ROUNDS {
                    for case in family(&mut r, round, &ISAS) {
                        assert_eq!(run(&case), case.expected, "{name}, round {round}: {}", case.what);
                    }
                }
            });
        }
    });
}
