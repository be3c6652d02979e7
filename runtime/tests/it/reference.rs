//! Every operator against [`crate::cases`], for every instruction set; what the desktop lacks kernels for takes the generic ones.

use crate::cases::model::{Memory, Random, seal};
use crate::cases::{FAMILIES, ISAS};
use crate::damage::narrow;
use crate::lanes::run_everywhere;
use crate::rounds;
use pith::circuit::MODEL_CLASSES;
use pith::format::tensor::Constant;
use pith::uses::{used_by, uses};
use pith::{Engine, Model};

/// Rounds per family.
const ROUNDS: usize = 300;

#[test]
fn operators_give_what_the_format_says() {
    std::thread::scope(|scope| {
        for (seed, (name, family)) in (1..).zip(FAMILIES) {
            scope.spawn(move || {
                let mut r = Random(seed);
                for round in 0..rounds(ROUNDS) {
                    for case in family(&mut r, round, &ISAS) {
                        assert_uses_are_read(&case.model);
                        let got = run_everywhere(&case.model, &case.inputs);
                        assert_eq!(got, case.expected, "{name}, round {round}: {}", case.what);
                    }
                }
            });
        }
    });
}

#[test]
fn a_program_for_other_models_refuses() {
    const LINEAR: u64 = pith::uses::operators(pith::format::op::kind::LINEAR);
    let cases = FAMILIES[2].1(&mut Random(1), 0, &ISAS);
    let mut file = Memory::of(&cases[0].model);
    assert!(Model::parse_using::<LINEAR>(file.bytes()).is_err(), "weights are missing");
    assert!(Model::parse_using::<{ LINEAR | u64::MAX << 32 }>(file.bytes()).is_ok());
    assert!(Model::parse_using::<{ !LINEAR }>(file.bytes()).is_err());
}

#[test]
fn a_program_without_circuits_decodes_numbers_alone() {
    const FLAT: u64 = !pith::uses::CIRCUITS;
    let mut file = Memory::of(&narrow());
    let model = Model::parse_using::<FLAT>(file.bytes()).unwrap();
    let mut arenas = [0, 1].map(|paint| Memory::new(model.arena_bytes(), paint));
    let [all, flat] = &mut arenas;
    let mut all = Engine::new(&model, all.bytes()).unwrap();
    let mut flat: Engine<'_, '_, FLAT> = Engine::using(&model, flat.bytes()).unwrap();
    all.input(0).iter_mut().zip(0..).for_each(|(q, i)| *q = i);
    flat.input(0).iter_mut().zip(0..).for_each(|(q, i)| *q = i);
    all.run();
    flat.run();
    assert_eq!(all.output(0), flat.output(0));
    assert!(all.output(0).iter().any(|&q| q != all.output(0)[0]), "{:?}", all.output(0));
    // The same code under another model's number.
    let coded = |c: &Constant| c.is_coded() && c.kind == Constant::KIND_BLOCKS;
    let constant = model.constants().iter().find(|c| coded(c)).unwrap();
    let mut circuit = narrow();
    circuit[model.header().weights_offset as usize + constant.offset as usize] = MODEL_CLASSES;
    seal(&mut circuit);
    let error = Model::parse_using::<FLAT>(Memory::of(&circuit).bytes()).unwrap_err().to_string();
    assert!(error.contains("built for other models"), "{error}");
}

#[test]
fn a_trusted_model_is_the_checked_one() {
    for (_, make) in FAMILIES {
        for case in make(&mut Random(2), 0, &ISAS) {
            let mut memory = Memory::of(&case.model);
            let bytes: &[u8] = memory.bytes();
            let checked = Model::parse(bytes).unwrap();
            // SAFETY: the line above.
            let trusted = unsafe { Model::trusted(bytes) };
            assert_eq!((trusted.header(), trusted.tensors()), (checked.header(), checked.tensors()));
            assert_eq!((trusted.constants(), trusted.inputs()), (checked.constants(), checked.inputs()));
            assert_eq!((trusted.outputs(), trusted.ops().count()), (checked.outputs(), checked.ops().count()));
            assert!(trusted.ops().zip(checked.ops()).all(|(a, b)| a == b));
            let bytes = |model: &Model<'_>| -> Vec<u8> {
                (0..model.constants().len()).flat_map(|id| model.stored_bytes(id as u16).to_vec()).collect()
            };
            assert_eq!(bytes(&trusted), bytes(&checked));
        }
    }
}

/// What is read of the bytes alone is what the checked operators use.
fn assert_uses_are_read(file: &[u8]) {
    let mut memory = Memory::of(file);
    let model = Model::parse(memory.bytes()).expect("a valid model");
    assert_eq!(uses(file), model.ops().fold(0, |all, (_, op)| all | used_by(&model, &op)));
}
