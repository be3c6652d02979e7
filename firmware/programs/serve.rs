//! The board answers on its line for ever: it says who it is, takes inputs, runs its model, takes another one.

#![no_std]
#![no_main]

use board::{MEMORY_BYTES, NAME, TICK_HZ};
use cortex_m_rt::entry;
use pith::Aligned;
use pith_firmware::counter::Counter;
use pith_firmware::stack::Gauge;
use pith_link::server::{About, Meter, runs, serve};
use pith_link::slots::Slots;

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

#[entry]
fn main() -> ! {
    let gauge = Gauge::paint();
    let (Some(mut core), Some(memory)) = (
        cortex_m::Peripherals::take(),
        cortex_m::singleton!(: Aligned<[u8; MEMORY_BYTES]> = Aligned([0; MEMORY_BYTES])),
    ) else {
        panic!("something was taken twice")
    };
    let (mut port, store) = board::take();
    let meters = Meters { counter: Counter::start(&mut core.SYST), gauge };
    let mut slots = Slots::new(store, |file| runs(file, MEMORY_BYTES));
    match slots.running() {
        Some(stored) => defmt::info!("{}: model {} of {} bytes", NAME, stored.version, stored.file.len()),
        None => defmt::info!("{}: no model yet", NAME),
    }
    let about = About { board: NAME, tick_hz: TICK_HZ };
    loop {
        // The line's errors are frames that do not arrive, for which the host asks again.
        let _ = serve(about, &mut port, &mut slots, &meters, &mut memory.0);
    }
}
