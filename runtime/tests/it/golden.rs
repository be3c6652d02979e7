//! Files that stay as they are: what version 1 wrote yesterday is read, and written, today.
//!
//! After a deliberate change of the format (and of its version), `PITH_BLESS=1 cargo test -p pith-runtime` writes them anew.

use crate::cases::model::{Builder, Memory};
use crate::damage::{asymmetric, block_sparse, every_operator, narrow, several_precisions};
use pith::circuit::Coded;
use pith::format::NONE;
use pith::format::blocks::Layout;
use pith::format::op::{self, Op};
use pith::format::tensor::Constant;
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
    for (name, bytes, expected) in [
        ("tiny.pith", tiny(), Some(vec![7i8, -15])),
        ("every_operator.pith", every_operator(), None),
        ("block_sparse.pith", block_sparse(), None),
        ("asymmetric.pith", asymmetric(Layout::Pairs), None),
        ("narrow.pith", narrow(), None),
    ] {
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

/// `precisions.pith`: 2, 4 and 8 bits of a convolution, of which the finer ones are refined.
#[test]
fn golden_precisions_are_reproduced_and_decoded() {
    let bytes = several_precisions(Some(Layout::Pairs), Constant::IN_RAM);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/precisions.pith");
    if std::env::var_os("PITH_BLESS").is_some() {
        std::fs::write(&path, &bytes).unwrap();
    }
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
    let mut file = Memory::of(&bytes);
    let verified = |model: Model<'_>| model.verify(&mut vec![0; model.decode_scratch_bytes()]);
    let all: Vec<_> = pith::precisions(file.bytes()).map(|model| verified(model.unwrap())).collect();
    assert_eq!(all, [Ok(()); 3]);
}

/// `codes.bin`: 12 rows of 9 positions by 5 channels, then codes of them under every model, each behind its length.
#[test]
fn golden_codes_are_decoded() {
    let file = std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/codes.bin")).unwrap();
    let (weights, mut rest) = file.split_at(540);
    let mut models = std::collections::BTreeSet::new();
    while let Some((length, after)) = rest.split_first_chunk() {
        let (code, after) = after.split_at(u32::from_le_bytes(*length) as usize);
        rest = after;
        let coded = Coded::new_checked(code, 8, weights.len()).unwrap();
        models.insert(coded.model());
        let mut state = vec![0; coded.state_words()];
        let mut decoder = coded.decoder(&mut state).unwrap();
        for expected in weights.chunks(45) {
            let mut row = [0; 45];
            decoder.row(&mut row);
            assert!(row.iter().zip(expected).all(|(&w, &e)| w == e as i8), "{}", coded.model());
        }
        assert!(decoder.is_finished(), "{}", coded.model());
    }
    assert_eq!(models.len(), 3);
}
