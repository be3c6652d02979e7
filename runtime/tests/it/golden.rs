//! Files that stay as they are: what version 1 wrote yesterday is read, and written, today.
//!
//! After a deliberate change of the format (and of its version), `PITH_BLESS=1 cargo test -p pith-runtime` writes them anew.

use crate::cases::model::{Builder, Memory};
use crate::damage::every_operator;
use pith::format::NONE;
use pith::format::op::{self, Op};
use pith::{Engine, Model};
use std::path::Path;

/// Three inputs, two outputs, one linear layer.
fn tiny() -> Vec<u8> {
    let mut b = Builder::default();
    let (x, y) = (b.tensor(&[3], 1), b.tensor(&[2], -4));
    let weights = b.weights(&[1, 2, 3, -1, -2, -3], 8);
    let channels = b.channels(&[(10, 1 << 30, 31), (-10, 1 << 30, 31)]);
    b.op(Op::Linear(op::Linear {
        input: x,
        output: y,
        weights,
        channels,
        rows: 1,
        k: 3,
        n: 2,
        weight_zero_points: NONE,
        act_min: -128,
        act_max: 127,
    }));
    (b.inputs, b.outputs) = (vec![x], vec![y]);
    b.finish()
}

#[test]
fn golden_files_are_reproduced_and_run() {
    for (name, bytes, expected) in
        [("tiny.pith", tiny(), Some(vec![7i8, -15])), ("every_operator.pith", every_operator(), None)]
    {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
        if std::env::var_os("PITH_BLESS").is_some() {
            std::fs::write(&path, &bytes).unwrap();
        }
        assert_eq!(std::fs::read(&path).unwrap(), bytes, "{name}");
        let mut file = Memory::of(&bytes);
        let model = Model::parse(file.bytes()).unwrap();
        let mut arena = Memory::new(model.arena_bytes(), 0);
        let mut engine = Engine::new(&model, arena.bytes()).unwrap();
        engine.input(0).fill(3);
        engine.run();
        if let Some(expected) = expected {
            // 10 + (3 - 1) * (1 + 2 + 3) = 22, halved, minus 4; and the mirror image.
            assert_eq!(engine.output(0), expected);
        }
    }
}
