//! `cargo xtask gestures`: what an LSM303AGR in a hand would feel, to train the example of a sensor on.
//!
//! The data are synthetic; a product records its own. In units of g and in the device's axes, an accelerometer feels `up + a + noise`, where `up` is a
//! unit vector in a random direction and `a` is the motion:
//!
//! - rest: on a table, or in a hand, which trembles (8 to 12 Hz, up to 0.02 g), sways (0.3 to 2 Hz, up to 0.1 g) and turns slowly;
//! - shake: 0.8 to 2.5 g along a random axis at 2.5 to 5.5 Hz, with a second harmonic, the wrist turning up to 15 degrees with it;
//! - circle: 0.3 to 1.2 g that go round in a random plane 0.8 to 1.8 times a second, up to a quarter flatter one way;
//! - tap: one or two blows of 1.5 to 4 g that ring out at 15 to 30 Hz within 15 to 40 ms;
//! - tilt: `up` turns by 45 to 120 degrees in 0.4 to 1 s, as smoothly as arms do (least jerk), and stays there.
//!
//! The chip averages over a sample's time, its clock is up to 5 % off, its axes have an offset of up to 0.04 g and a gain up to 1 % off, and it gives 10 bits
//! of ±4 g with 4 mg of noise, clipped.

use crate::ToolError;
use ndarray::{ArrayD, IxDyn};
use pith_sensing::replay::Recorded;
use pith_sensing::{GESTURES, RATE_HZ, REST, Sample, WINDOW, step};
use quantize::files;
use quantize::graph::scalar::ScalarFn;
use quantize::graph::shape::ShapeError;
use quantize::graph::{Clamp, Graph, Op, TensorId, Window};
use quantize::npy;
use quantize::onnx;
use quantize::random::Random;
use std::f32::consts::TAU;
use std::path::PathBuf;

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folder for gestures-train.npz, gestures-test.npz, gestures-start.onnx (untrained) and gestures.recording
    #[arg(long)]
    out: PathBuf,
    /// Windows of every gesture to train on; there are a fifth of them to test
    #[arg(long, default_value_t = 4000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    windows: u32,
    /// Of all random choices
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

type Vector = [f32; 3];

fn scaled(v: Vector, by: f32) -> Vector {
    v.map(|x| x * by)
}

fn sum(a: Vector, b: Vector) -> Vector {
    [a[0] + b[0], a[1] + b[1], a[2] + b[2]]
}

fn dot(a: Vector, b: Vector) -> f32 {
    a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
}

fn cross(a: Vector, b: Vector) -> Vector {
    [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]]
}

fn unit(v: Vector) -> Vector {
    scaled(v, 1.0 / dot(v, v).sqrt().max(1e-6))
}

/// `v` turned by an angle around an axis of length 1 (Rodrigues).
fn turned(v: Vector, axis: Vector, angle: f32) -> Vector {
    let along = scaled(axis, dot(axis, v) * (1.0 - angle.cos()));
    sum(sum(scaled(v, angle.cos()), scaled(cross(axis, v), angle.sin())), along)
}

fn between(random: &mut Random, low: f32, high: f32) -> f32 {
    low + (high - low) * random.uniform()
}

fn direction(random: &mut Random) -> Vector {
    unit([random.normal(), random.normal(), random.normal()])
}

/// A direction across another one.
fn across(random: &mut Random, v: Vector) -> Vector {
    unit(cross(v, direction(random)))
}

/// From 0 to 1 within a time, and back in the same before the end.
fn envelope(t: f32, duration: f32, rise: f32) -> f32 {
    (t / rise).min((duration - t) / rise).clamp(0.0, 1.0)
}

/// Motion steps of a sample.
const STEPS: usize = 8;

/// A sinusoidal motion.
struct Sway {
    axis: Vector,
    hz: f32,
    phase: f32,
}

impl Sway {
    fn new(random: &mut Random, most: f32, hz: [f32; 2]) -> Sway {
        let size = most * random.uniform();
        Sway { axis: scaled(direction(random), size), hz: between(random, hz[0], hz[1]), phase: TAU * random.uniform() }
    }

    fn at(&self, t: f32) -> Vector {
        scaled(self.axis, (TAU * self.hz * t + self.phase).sin())
    }
}

/// A chip in a hand or on a table, and what it has recorded.
struct Device {
    random: Random,
    up: Vector,
    tremor: Sway,
    sway: Sway,
    turning: Sway,
    /// Seconds of a motion step.
    step: f32,
    time: f32,
    offset: Vector,
    gain: Vector,
    samples: Vec<Recorded>,
}

impl Device {
    fn new(mut random: Random) -> Device {
        let hand = if random.below(4) > 0 { 1.0 } else { 0.0 };
        let any = |random: &mut Random, most: f32| [0; 3].map(|_| between(random, -most, most));
        Device {
            up: direction(&mut random),
            tremor: Sway::new(&mut random, 0.02 * hand, [8.0, 12.0]),
            sway: Sway::new(&mut random, 0.1 * hand, [0.3, 2.0]),
            turning: Sway::new(&mut random, 0.15 * hand, [0.1, 0.5]),
            step: between(&mut random, 0.95, 1.05) / (RATE_HZ as f32 * STEPS as f32),
            time: 0.0,
            offset: any(&mut random, 0.04),
            gain: any(&mut random, 0.01).map(|g| 1.0 + g),
            samples: Vec::new(),
            random,
        }
    }

    /// Records for so many seconds; `motion` gives the acceleration and how `up` stands, from the time and how it stood at first.
    fn record(&mut self, seconds: f32, motion: impl Fn(f32, Vector) -> (Vector, Vector)) {
        let count = (seconds / (self.step * STEPS as f32)).ceil() as usize;
        let mut t = 0.0;
        for _ in 0..count {
            let mut felt = [0.0; 3];
            for _ in 0..STEPS {
                let (acceleration, up) = motion(t, self.up);
                let hand = sum(self.tremor.at(self.time), self.sway.at(self.time));
                let turn = self.turning.at(self.time);
                self.up = turned(self.up, unit(turn), dot(turn, turn).sqrt() * self.step);
                felt = sum(felt, scaled(sum(sum(acceleration, up), hand), 1.0 / STEPS as f32));
                t += self.step;
                self.time += self.step;
            }
            let mut sample = [0; 3];
            for axis in 0..3 {
                let g = felt[axis] * self.gain[axis] + self.offset[axis] + 0.004 * self.random.normal();
                // 10 bits, at the upper end of 16.
                sample[axis] = ((g * 128.0).round().clamp(-512.0, 511.0) as i16) << 6;
            }
            self.samples.push(sample);
        }
        self.up = unit(motion(t, self.up).1);
    }

    fn rest(&mut self, seconds: f32) {
        self.record(seconds, |_, up| ([0.0; 3], up));
    }

    /// Moves, for about so many seconds where the gesture has no length of its own.
    fn gesture(&mut self, gesture: usize, seconds: f32) {
        let random = &mut self.random;
        let (axis, phase) = (direction(random), TAU * random.uniform());
        match GESTURES[gesture] {
            "shake" => {
                let (size, hz) = (between(random, 0.8, 2.5), between(random, 2.5, 5.5));
                let (second, wrist) = (between(random, 0.0, 0.3), between(random, 0.0, 0.26));
                let hinge = direction(random);
                self.record(seconds, |t, up| {
                    let (angle, much) = (TAU * hz * t + phase, envelope(t, seconds, 0.15));
                    let along = angle.sin() + second * (2.0 * angle + phase).sin();
                    (scaled(axis, size * much * along), turned(up, hinge, wrist * much * angle.cos()))
                });
            }
            "circle" => {
                let (size, hz) = (between(random, 0.3, 1.2), between(random, 0.8, 1.8));
                let (flat, hinge) = (between(random, 0.75, 1.0), direction(random));
                let (other, wrist) = (scaled(across(random, axis), flat), between(random, 0.0, 0.15));
                self.record(seconds, |t, up| {
                    let (angle, much) = (TAU * hz * t + phase, envelope(t, seconds, 0.3));
                    let round = sum(scaled(axis, angle.cos()), scaled(other, angle.sin()));
                    (scaled(round, size * much), turned(up, hinge, wrist * much * angle.sin()))
                });
            }
            "tap" => {
                let blows = 1 + random.below(2);
                let apart = between(random, 0.15, 0.3);
                let (size, hz) = (between(random, 1.5, 4.0), between(random, 15.0, 30.0));
                let decay = between(random, 0.015, 0.04);
                let blow = |t: f32| match t {
                    0.0.. => size * (-t / decay).exp() * (TAU * hz * t).sin(),
                    _ => 0.0,
                };
                self.record(0.1 + apart * (blows - 1) as f32, |t, up| {
                    (scaled(axis, (0..blows).map(|i| blow(t - apart * i as f32)).sum()), up)
                });
            }
            "tilt" => {
                let (hinge, seconds) = (across(random, self.up), between(random, 0.4, 1.0));
                let (angle, push) = (between(random, 0.8, 2.1), between(random, 0.0, 0.2));
                self.record(seconds, |t, up| {
                    let s = (t / seconds).min(1.0);
                    let part = s * s * s * (10.0 - s * (15.0 - 6.0 * s));
                    (scaled(axis, push * (TAU * s).sin()), turned(up, hinge, angle * part))
                });
            }
            _ => self.rest(seconds),
        }
    }
}

/// A window with a gesture in it: through three eighths of it at least, if it goes on, else the whole of the gesture.
fn window(gesture: usize, random: Random) -> Vec<Sample> {
    let mut device = Device::new(random);
    let lead = WINDOW as f32 / RATE_HZ as f32 * 1.1;
    device.rest(lead);
    let from = device.samples.len();
    let seconds = between(&mut device.random, 1.5, 2.5);
    // Half of the windows at rest lie before or after a gesture, of which they may hold its first or last moments.
    let shown = if gesture == REST && device.random.below(2) > 0 { 1 + device.random.below(4) } else { gesture };
    device.gesture(shown, seconds);
    let to = device.samples.len();
    device.rest(lead);
    let few = WINDOW / 16;
    let starts = match GESTURES[gesture] {
        "rest" if device.random.below(2) > 0 => from - WINDOW..from + few - WINDOW,
        "rest" => to - few..to + 1,
        "shake" | "circle" => from - WINDOW * 5 / 8..to + WINDOW * 5 / 8 - WINDOW,
        // An arm's first and last moments move nothing.
        "tilt" => to - few - WINDOW..from + few,
        _ => to - WINDOW..from,
    };
    let start = starts.start + device.random.below(starts.len());
    device.samples[start..start + WINDOW].iter().map(|sample| sample.map(|axis| step(axis >> 6))).collect()
}

/// So many windows of every gesture, as an `.npz`: bytes, 128 being no acceleration.
fn set(each: usize, seed: u64) -> Result<Vec<u8>, ToolError> {
    let (mut x, mut y) = (Vec::new(), Vec::new());
    for i in 0..each * GESTURES.len() {
        let gesture = i % GESTURES.len();
        x.extend(window(gesture, Random::new(seed, i as u64)).into_iter().flatten().map(|axis| axis as u8 ^ 0x80));
        y.push(gesture as u8);
    }
    let x = npy::encode("|u1", &[y.len(), WINDOW, 1, 3], &x);
    let y = npy::encode("|u1", &[y.len()], &y);
    npy::encode_archive(&[("x".into(), x), ("y".into(), y)]).map_err(|e| ToolError(e.to_string()))
}

/// Every gesture once, in their order, with rest between them.
pub fn recording(seed: u64) -> Vec<Recorded> {
    let mut device = Device::new(Random::new(seed, 0));
    device.rest(2.5);
    for gesture in 1..GESTURES.len() {
        device.gesture(gesture, 2.0);
        device.rest(2.5);
    }
    device.samples
}

/// 16 bits of x, y, z, the low byte first.
fn bytes_of(recording: &[Recorded]) -> Vec<u8> {
    recording.iter().flatten().flat_map(|axis| axis.to_le_bytes()).collect()
}

/// Three convolutions over time, each with half of the steps, their mean, a linear layer.
fn network(seed: u64) -> Result<Graph, ShapeError> {
    let mut random = Random::new(seed, 0);
    let mut weight = |shape: &[usize], gain: f32| {
        let deviation = (gain / shape[1..].iter().product::<usize>() as f32).sqrt();
        ArrayD::from_shape_simple_fn(IxDyn(shape), || random.normal() * deviation)
    };
    let mut graph = Graph { name: "gestures".into(), ..Graph::default() };
    let mut x: TensorId = graph.add_input("window", &[1, WINDOW, 1, 3]);
    graph.inputs[0].onnx_axes = vec![0, 2, 3, 1];
    for (i, [inputs, outputs, kernel]) in [[3, 8, 5], [8, 16, 5], [16, 24, 3]].into_iter().enumerate() {
        let name = format!("conv{}", i + 1);
        let pad = kernel / 2;
        let window = Window { kernel: [kernel, 1], stride: [2, 1], dilation: [1; 2], pad: [pad, 0, pad, 0] };
        let weight = weight(&[outputs, kernel, 1, inputs], 2.0);
        let convolution = Op::Conv2d { window, groups: 1, weight, bias: vec![0.0; outputs], clamp: Clamp::NONE };
        x = graph.push(name.clone(), convolution, &[x])?;
        let [zero, one] = [0.0, 1.0].map(|v| vec![v; outputs]);
        let norm = Op::BatchNorm { gamma: one.clone(), beta: zero.clone(), mean: zero, var: one, epsilon: 1e-5 };
        x = graph.push(format!("{name}.norm"), norm, &[x])?;
        x = graph.push(format!("{name}.relu"), Op::Map(ScalarFn::clamp(Clamp::RELU)), &[x])?;
    }
    x = graph.push("average", Op::Mean { axes: vec![1, 2] }, &[x])?;
    x = graph.push("flatten", Op::Reshape { shape: vec![1, 24] }, &[x])?;
    let classes = GESTURES.len();
    let linear = Op::Linear { weight: weight(&[classes, 24], 1.0), bias: vec![0.0; classes], clamp: Clamp::NONE };
    x = graph.push("classifier", linear, &[x])?;
    graph.add_output("scores", x);
    Ok(graph)
}

/// The verb.
pub fn run(args: &Args) -> Result<(), ToolError> {
    let said = |e: &dyn std::fmt::Display| ToolError(format!("{}: {e}", args.out.display()));
    std::fs::create_dir_all(&args.out).map_err(|e| said(&e))?;
    let graph = network(args.seed).map_err(|e| said(&e))?;
    let written = [
        ("gestures-train.npz", set(args.windows as usize, args.seed)?),
        ("gestures-test.npz", set(args.windows.div_ceil(5) as usize, args.seed.wrapping_add(1))?),
        ("gestures-start.onnx", onnx::encode(&graph).map_err(|e| said(&e))?),
        ("gestures.recording", bytes_of(&recording(args.seed.wrapping_add(2)))),
    ];
    for (name, bytes) in written {
        files::write_whole(&args.out.join(name), &bytes).map_err(|e| said(&e))?;
        println!("{name:<20} {:>9} bytes", bytes.len());
    }
    Ok(())
}
