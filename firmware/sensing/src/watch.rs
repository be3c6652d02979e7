//! The loop: sleep, sample, look every so often, decide, light up.
//!
//! The accelerometer keeps the time: it makes a sample every 20 ms, and the core sleeps for most of them, then asks until there is one. What the
//! model takes comes out of that sleep; up to a sample's time is fine.

use crate::decision::Decision;
use crate::{RATE_HZ, REST, STRIDE, Sample, WINDOW, step};
use embedded_hal::delay::DelayNs;
use embedded_hal::digital::OutputPin;
use embedded_hal::i2c::{ErrorKind, I2c, NoAcknowledgeSource};
use heapless::HistoryBuf;
use lsm303agr::interface::I2cInterface;
use lsm303agr::mode::MagOneShot;
use lsm303agr::{AccelMode, AccelOutputDataRate, AccelScale, Error, Lsm303agr};
use pith::Engine;

/// Time from sample to sample, and how far the accelerometer's clock may be ahead.
const PERIOD_MS: u32 = 1000 / RATE_HZ;
const EARLY_MS: u32 = 2;

/// Periods after which the accelerometer is taken for dead.
const PATIENCE: u32 = 10;

/// What an accelerometer feels, and what has been made of it.
#[derive(Debug)]
pub struct Watch<B, L, D> {
    accelerometer: Lsm303agr<I2cInterface<B>, MagOneShot>,
    light: L,
    delay: D,
    window: HistoryBuf<Sample, WINDOW>,
    /// Samples so far.
    samples: u32,
    /// Samples until the next look.
    wait: usize,
    decision: Decision,
}

/// Another gesture from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Its number in [`crate::GESTURES`].
    pub gesture: usize,
    /// Samples since the start.
    pub samples: u32,
}

/// Why there is nothing to see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The bus failed.
    Bus(ErrorKind),
    /// Another chip has the address.
    Stranger {
        /// What it says it is.
        id: u8,
    },
    /// No sample comes.
    Silence,
    /// The light failed.
    Light,
}

impl Fault {
    /// A sentence for the log.
    pub fn text(self) -> &'static str {
        match self {
            Fault::Bus(ErrorKind::NoAcknowledge(NoAcknowledgeSource::Address | NoAcknowledgeSource::Unknown)) => {
                "no accelerometer answers; is it powered and wired to this bus?"
            }
            Fault::Bus(_) => "the bus failed",
            Fault::Stranger { .. } => "the chip at the accelerometer's address is no LSM303AGR",
            Fault::Silence => "the accelerometer makes no samples",
            Fault::Light => "the light failed",
        }
    }
}

impl<E: embedded_hal::i2c::Error> From<Error<E>> for Fault {
    fn from(error: Error<E>) -> Fault {
        match error {
            Error::Comm(error) => Fault::Bus(error.kind()),
            Error::InvalidInputData => Fault::Bus(ErrorKind::Other),
        }
    }
}

impl<B: I2c, L: OutputPin, D: DelayNs> Watch<B, L, D> {
    /// Nothing runs yet. `margin` is what a score has to lead by, in the model's steps.
    pub fn new(bus: B, light: L, delay: D, margin: i16) -> Watch<B, L, D> {
        Watch {
            accelerometer: Lsm303agr::new_with_i2c(bus),
            light,
            delay,
            window: HistoryBuf::new(),
            samples: 0,
            wait: WINDOW,
            decision: Decision::new(margin),
        }
    }

    /// Sets the accelerometer up, whatever state it is in, and begins with an empty window.
    pub fn start(&mut self) -> Result<(), Fault> {
        self.light.set_low().map_err(|_| Fault::Light)?;
        let id = self.accelerometer.accelerometer_id()?;
        if !id.is_correct() {
            return Err(Fault::Stranger { id: id.raw() });
        }
        self.accelerometer.init()?;
        self.accelerometer.set_accel_scale(AccelScale::G4)?;
        self.accelerometer.set_accel_mode_and_odr(&mut self.delay, AccelMode::Normal, AccelOutputDataRate::Hz50)?;
        self.window.clear();
        self.wait = WINDOW;
        self.decision.clear();
        Ok(())
    }

    /// Sleeps, samples and looks until the gesture is another one, or rest again.
    pub fn next<const USES: u64>(&mut self, engine: &mut Engine<'_, '_, USES>) -> Result<Seen, Fault> {
        loop {
            let sample = self.sample()?;
            self.window.write(sample);
            self.samples = self.samples.wrapping_add(1);
            self.wait -= 1;
            if self.wait > 0 {
                continue;
            }
            self.wait = STRIDE;
            let values = self.window.oldest_ordered().flatten();
            engine.input(0).iter_mut().zip(values).for_each(|(to, &value)| *to = value);
            engine.run();
            if let Some(gesture) = self.decision.update(engine.output(0)) {
                self.light.set_state((gesture != REST).into()).map_err(|_| Fault::Light)?;
                return Ok(Seen { gesture, samples: self.samples });
            }
        }
    }

    /// Sleeps, after a fault.
    pub fn pause(&mut self, ms: u32) {
        self.delay.delay_ms(ms);
    }

    /// The next sample, when it is there.
    fn sample(&mut self) -> Result<Sample, Fault> {
        self.delay.delay_ms(PERIOD_MS - EARLY_MS);
        for _ in 0..PATIENCE * PERIOD_MS {
            if self.accelerometer.accel_status()?.xyz_new_data() {
                let (x, y, z) = self.accelerometer.acceleration()?.xyz_unscaled();
                return Ok([x, y, z].map(step));
            }
            self.delay.delay_ms(1);
        }
        Err(Fault::Silence)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replay::Replay;
    use core::convert::Infallible;
    use embedded_hal::digital;
    use embedded_hal::i2c::{self, Operation};

    /// A chip whose registers all hold one byte.
    struct Same(u8);

    impl i2c::ErrorType for Same {
        type Error = ErrorKind;
    }

    impl I2c for Same {
        fn transaction(&mut self, _: u8, operations: &mut [Operation<'_>]) -> Result<(), ErrorKind> {
            for operation in operations {
                if let Operation::Read(bytes) = operation {
                    bytes.fill(self.0);
                }
            }
            Ok(())
        }
    }

    struct Nothing;

    impl digital::ErrorType for Nothing {
        type Error = Infallible;
    }

    impl OutputPin for Nothing {
        fn set_low(&mut self) -> Result<(), Infallible> {
            Ok(())
        }

        fn set_high(&mut self) -> Result<(), Infallible> {
            Ok(())
        }
    }

    impl DelayNs for Nothing {
        fn delay_ns(&mut self, _: u32) {}
    }

    #[test]
    fn faults_are_told_apart() {
        let fault = |mut watch: Watch<Same, Nothing, Nothing>| watch.start().and_then(|()| watch.sample()).unwrap_err();
        let watch = |byte| Watch::new(Same(byte), Nothing, Nothing, 1);
        assert_eq!(fault(watch(0x44)), Fault::Stranger { id: 0x44 });
        // It is the right one, and its status never says that there is a sample.
        assert_eq!(fault(watch(0x33)), Fault::Silence);
        let mut watch = Watch::new(Replay::new([[64, 0, -64]].into_iter()), Nothing, Nothing, 1);
        watch.start().unwrap();
        assert_eq!(watch.sample(), Ok([0, 0, 0]));
        let gone = Fault::Bus(ErrorKind::NoAcknowledge(NoAcknowledgeSource::Address));
        assert_eq!(watch.sample(), Err(gone));
        assert_eq!(watch.start(), Err(gone));
        assert!(gone.text().contains("answers"));
    }
}
