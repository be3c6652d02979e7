//! The board answers on its line for ever: it says who it is, takes inputs, runs its model, takes another one.

#![no_std]
#![no_main]

use board::{MEMORY_BYTES, NAME, TICK_HZ};
use pith::Aligned;
use pith_firmware::Parts;
use pith_firmware::counter::Counter;
use pith_firmware::stack::Gauge;
use pith_link::server::{About, Meter, runs, serve};
use pith_link::slots::Slots;
use static_cell::ConstStaticCell;

/// For arenas and decoded weights.
static MEMORY: ConstStaticCell<Aligned<[u8; MEMORY_BYTES]>> = ConstStaticCell::new(Aligned([0; MEMORY_BYTES]));

struct Meters {
    counter: Counter,
    gauge: Gauge,
}

impl Meter for Meters {
    fn ticks(&self, work: &mut dyn FnMut()) -> u32 {
        self.counter.ticks(work).1
    }

    fn stack_bytes(&self) -> u32 {
        self.gauge.total() as u32
    }
}

#[board::entry]
fn main() -> ! {
    let gauge = Gauge::paint();
    let Parts { mut line, store, counter } = board::take();
    let memory = MEMORY.take();
    let meters = Meters { counter, gauge };
    let mut slots = Slots::new(store, |file| runs(file, MEMORY_BYTES));
    match slots.running() {
        Some(stored) => defmt::info!("{}: model {} of {} bytes", NAME, stored.version, stored.file.len()),
        None => defmt::info!("{}: no model yet", NAME),
    }
    let about = About { board: NAME, tick_hz: TICK_HZ };
    loop {
        // The line's errors are frames that do not arrive, for which the host asks again.
        let _ = serve(about, &mut line, &mut slots, &meters, &mut memory.0);
    }
}
