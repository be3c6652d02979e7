//! The board feels how it is moved: an LSM303AGR on its I2C bus, sampled at 50 Hz, a model that looks at the last 1.3 seconds every 160 ms, a light while
//! there is a gesture, a line of the log when it changes. Between samples the core sleeps, where the board's delay lets it.
//!
//! `pith-sensing` does all of that for any bus, pin and delay of `embedded-hal`; here are the model and its memory. The model is as large as it looks: it
//! does not compile if it should need more. It comes from synthetic gestures (`tests/models/gestures/README.md` says how); a product records its own,
//! trains on them with the same commands, and changes these paths.

#![no_std]
#![no_main]

use board::{NAME, sense};
use pith_firmware::Senses;
use pith_sensing::watch::Watch;
use pith_sensing::{GESTURES, WINDOW, margin};
use static_cell::ConstStaticCell;

// The same model and the same outputs, its weights laid out for the kernels of the core: of v6-M, of the DSP extension (which all
// cores with hard floats here have), of any.
pith::include_model!(
    #[cfg(all(target_arch = "arm", not(target_has_atomic = "32")))]
    mod gestures = "../../tests/models/gestures/gestures-m0.pith", ram <= 1024, flash <= 4 * 1024);
pith::include_model!(
    #[cfg(all(target_arch = "arm", target_abi = "eabihf"))]
    mod gestures = "../../tests/models/gestures/gestures-m4.pith", ram <= 1024, flash <= 4 * 1024);
pith::include_model!(
    #[cfg(not(all(target_arch = "arm", any(not(target_has_atomic = "32"), target_abi = "eabihf"))))]
    mod gestures = "../../tests/models/gestures/gestures.pith", ram <= 1024, flash <= 4 * 1024);

// The window is copied as it is: the sets are bytes, 128 for no acceleration, and the model takes a byte less 128.
const _: () = assert!(gestures::INPUTS[0].len == 3 * WINDOW && gestures::OUTPUTS[0].len == GESTURES.len());
const _: () = assert!(gestures::INPUTS[0].scale == 1.0 && gestures::INPUTS[0].zero_point == -128);

static ARENA: ConstStaticCell<gestures::Arena> = ConstStaticCell::new(gestures::ARENA);

#[board::entry]
fn main() -> ! {
    let Senses { bus, light, delay } = sense();
    let model = gestures::model().expect("the compiler has read it");
    let mut engine = gestures::Engine::using(&model, &mut ARENA.take().0).expect("the arena has its size");
    let mut watch = Watch::new(bus, light, delay, margin(gestures::OUTPUTS[0].scale));
    defmt::info!("{}: a model of {} bytes watches, {} bytes of RAM", NAME, gestures::FILE.len(), gestures::RAM_BYTES);
    loop {
        let fault = match watch.start() {
            Ok(()) => loop {
                match watch.next(&mut engine) {
                    Ok(seen) => defmt::info!("sample {}: {}", seen.samples, GESTURES[seen.gesture]),
                    Err(fault) => break fault,
                }
            },
            Err(fault) => fault,
        };
        defmt::error!("{}", fault.text());
        watch.pause(1000);
    }
}
