//! An LSM303AGR on a bus, whose samples come from a recording: the registers that drivers touch behave as the data sheet says.
//!
//! A sample is new at every second look at STATUS_REG_A, so that time plays no part in what comes out. Its magnetometer acknowledges and sleeps.
//! When the recording ends, the chip is gone.

use embedded_hal::i2c::{ErrorKind, ErrorType, I2c, NoAcknowledgeSource, Operation};

const ACCELEROMETER: u8 = 0x19;
const MAGNETOMETER: u8 = 0x1E;

const WHO_AM_I: u8 = 0x0F;
const CTRL_REG1: u8 = 0x20;
const CTRL_REG4: u8 = 0x23;
const STATUS_REG: u8 = 0x27;
const OUT_X_L: u8 = 0x28;
const OUT_Z_H: u8 = 0x2D;

/// What WHO_AM_I_A says.
const ID: u8 = 0x33;

/// New data of x, y, z; a fourth bit says all of them.
const NEW: u8 = 0b111;

/// Bit of a register's address in the first byte: more bytes are of the registers behind it.
const INCREMENT: u8 = 1 << 7;

/// A recorded sample: x, y, z in 16 bits of ±4 g, of which the chip's mode decides how many are given.
pub type Recorded = [i16; 3];

/// The chip.
#[derive(Debug)]
pub struct Replay<R> {
    recording: R,
    /// Control registers, by address.
    registers: [u8; 0x40],
    /// The register that is read or written next, and the bit that says whether the next one follows.
    pointer: u8,
    sample: Recorded,
    new: u8,
    /// The look before found nothing new.
    is_due: bool,
    is_over: bool,
}

impl<R: Iterator<Item = Recorded>> Replay<R> {
    /// As after power is switched on.
    pub fn new(recording: R) -> Replay<R> {
        let mut registers = [0; 0x40];
        registers[usize::from(CTRL_REG1)] = 0b111;
        Replay { recording, registers, pointer: 0, sample: [0; 3], new: 0, is_due: false, is_over: false }
    }

    fn register(&self, address: u8) -> u8 {
        self.registers[usize::from(address) % self.registers.len()]
    }

    /// Whether it makes samples, with all axes and the range of the recording.
    fn is_on(&self) -> bool {
        let (control, range) = (self.register(CTRL_REG1), self.register(CTRL_REG4) >> 4 & 0b11);
        control >> 4 != 0 && control & 0b111 == 0b111 && range == 0b01
    }

    /// Bits of a sample that mean something: 12 at high resolution, 8 at low power, else 10.
    fn bits(&self) -> u32 {
        match (self.register(CTRL_REG4) & 1 << 3 != 0, self.register(CTRL_REG1) & 1 << 3 != 0) {
            (true, _) => 12,
            (false, true) => 8,
            (false, false) => 10,
        }
    }

    fn status(&mut self) -> u8 {
        if self.is_due && self.is_on() {
            match self.recording.next() {
                Some(sample) => (self.sample, self.new) = (sample, NEW),
                None => self.is_over = true,
            }
        }
        self.is_due = self.new == 0 && !self.is_due;
        let all = u8::from(self.new == NEW) << 3;
        all | self.new
    }

    fn get(&mut self) -> u8 {
        match self.pointer & !INCREMENT {
            WHO_AM_I => ID,
            STATUS_REG => self.status(),
            address @ OUT_X_L..=OUT_Z_H => {
                let (axis, byte) = ((address - OUT_X_L) / 2, (address - OUT_X_L) % 2);
                let unused = 16 - self.bits();
                // The high byte is read last, and the axis is old then.
                self.new &= !(byte << axis);
                (self.sample[usize::from(axis)] >> unused << unused).to_le_bytes()[usize::from(byte)]
            }
            address => self.register(address),
        }
    }

    fn put(&mut self, byte: u8) {
        let address = usize::from(self.pointer & !INCREMENT);
        // Identity, status and samples are read-only; what lies behind the last register is not there.
        let is_writable = !matches!(address as u8, WHO_AM_I | STATUS_REG..=OUT_Z_H);
        if let Some(register) = self.registers.get_mut(address).filter(|_| is_writable) {
            *register = byte;
        }
    }

    fn advance(&mut self) {
        if self.pointer & INCREMENT != 0 {
            self.pointer = INCREMENT | self.pointer.wrapping_add(1);
        }
    }
}

impl<R> ErrorType for Replay<R> {
    type Error = ErrorKind;
}

impl<R: Iterator<Item = Recorded>> I2c for Replay<R> {
    fn transaction(&mut self, address: u8, operations: &mut [Operation<'_>]) -> Result<(), ErrorKind> {
        let is_there = matches!(address, ACCELEROMETER | MAGNETOMETER) && !self.is_over;
        if !is_there {
            return Err(ErrorKind::NoAcknowledge(NoAcknowledgeSource::Address));
        }
        // The first byte of what is written after a start says which register.
        let mut is_start = true;
        for operation in operations {
            match operation {
                Operation::Read(bytes) => {
                    for byte in bytes.iter_mut() {
                        *byte = if address == ACCELEROMETER { self.get() } else { 0 };
                        self.advance();
                    }
                    is_start = true;
                }
                Operation::Write(_) if address == MAGNETOMETER => {}
                Operation::Write(bytes) => {
                    for &byte in bytes.iter() {
                        if is_start {
                            self.pointer = byte;
                        } else {
                            self.put(byte);
                            self.advance();
                        }
                        is_start = false;
                    }
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use embedded_hal::delay::DelayNs;
    use lsm303agr::{AccelMode, AccelOutputDataRate, AccelScale, Error, Lsm303agr};

    struct NoTime;

    impl DelayNs for NoTime {
        fn delay_ns(&mut self, _: u32) {}
    }

    const SAMPLES: [Recorded; 2] = [[0x7FFF, -0x8000, 0x1234], [-1, 0x00FF, 0x0040]];

    /// What the driver reads of the first samples in a mode.
    fn given(mode: AccelMode) -> [(u16, u16, u16); 2] {
        let mut chip = Lsm303agr::new_with_i2c(Replay::new(SAMPLES.into_iter()));
        assert!(chip.accelerometer_id().unwrap().is_correct());
        chip.init().unwrap();
        chip.set_accel_scale(AccelScale::G4).unwrap();
        chip.set_accel_mode_and_odr(&mut NoTime, mode, AccelOutputDataRate::Hz50).unwrap();
        let read = [(); 2].map(|()| {
            let mut new = || chip.accel_status().unwrap().xyz_new_data();
            // New at the second look, and until it is read.
            assert_eq!([new(), new(), new()], [false, true, true]);
            chip.acceleration().unwrap().xyz_raw()
        });
        assert!(!chip.accel_status().unwrap().xyz_new_data());
        assert!(!chip.accel_status().unwrap().xyz_new_data());
        let gone = ErrorKind::NoAcknowledge(NoAcknowledgeSource::Address);
        assert!(matches!(chip.acceleration(), Err(Error::Comm(error)) if error == gone));
        read
    }

    #[test]
    fn a_driver_reads_what_the_mode_has_bits_for() {
        assert_eq!(given(AccelMode::Normal), [(0x7FC0, 0x8000, 0x1200), (0xFFC0, 0x00C0, 0x0040)]);
        assert_eq!(given(AccelMode::HighResolution), [(0x7FF0, 0x8000, 0x1230), (0xFFF0, 0x00F0, 0x0040)]);
        assert_eq!(given(AccelMode::LowPower), [(0x7F00, 0x8000, 0x1200), (0xFF00, 0x0000, 0x0000)]);
    }

    #[test]
    fn it_makes_samples_when_it_is_told_to() {
        let mut chip = Lsm303agr::new_with_i2c(Replay::new(SAMPLES.into_iter()));
        let has_new = |chip: &mut Lsm303agr<_, _>| (0..5).any(|_| chip.accel_status().unwrap().xyz_new_data());
        assert!(!has_new(&mut chip));
        chip.set_accel_mode_and_odr(&mut NoTime, AccelMode::Normal, AccelOutputDataRate::Hz50).unwrap();
        assert!(!has_new(&mut chip), "its range is another");
        chip.set_accel_scale(AccelScale::G4).unwrap();
        assert!(has_new(&mut chip));
    }

    #[test]
    fn addresses_count_up_where_they_are_told_to() {
        let mut bus = Replay::new(SAMPLES.into_iter());
        bus.write(ACCELEROMETER, &[CTRL_REG1 | INCREMENT, 0x47, 0x80, 0, 0x10]).unwrap();
        let mut bytes = [0; 4];
        bus.write_read(ACCELEROMETER, &[CTRL_REG1 | INCREMENT], &mut bytes).unwrap();
        assert_eq!(bytes, [0x47, 0x80, 0, 0x10]);
        bus.write_read(ACCELEROMETER, &[CTRL_REG1], &mut bytes).unwrap();
        assert_eq!(bytes, [0x47; 4]);
        bus.write(ACCELEROMETER, &[WHO_AM_I, 1]).unwrap();
        bus.write_read(ACCELEROMETER, &[WHO_AM_I], &mut bytes[..1]).unwrap();
        assert_eq!(bytes[0], ID);
        assert_eq!(bus.write(0x18, &[0]), Err(ErrorKind::NoAcknowledge(NoAcknowledgeSource::Address)));
        bus.write(MAGNETOMETER, &[0x62, 0x10]).unwrap();
    }
}
