//! Scalar functions: the meaning of every element-wise operator of one tensor.
//!
//! An expression of one variable. The importer emits small ones (`Sigmoid`), [`super::fuse`] joins them (a GELU that PyTorch
//! wrote as `Div, Erf, Add, Mul, Mul` becomes one expression), and the integer graph tabulates each over its 256 inputs.

use super::Clamp;

/// An expression of one variable `x`.
#[derive(Clone, Debug, PartialEq)]
pub enum ScalarFn {
    /// The variable.
    X,
    /// A constant.
    Const(f32),
    /// Function of one argument.
    Unary(Unary, Box<ScalarFn>),
    /// Function of two arguments.
    Binary(Binary, Box<ScalarFn>, Box<ScalarFn>),
}

/// Functions of one argument.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Unary {
    /// `x.max(min).min(max)`
    Clamp(Clamp),
    /// `x >= 0 ? x : slope * x`
    LeakyRelu(f32),
    /// `1 / (1 + e^-x)`
    Sigmoid,
    /// `clamp(alpha x + beta, 0, 1)`
    HardSigmoid(f32, f32),
    /// `x * clamp(x / 6 + 0.5, 0, 1)`
    HardSwish,
    /// Hyperbolic tangent.
    Tanh,
    /// Gauss error function.
    Erf,
    /// `0.5 x (1 + erf(x / sqrt 2))`
    Gelu,
    /// `0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))`
    GeluTanh,
    /// Exponential.
    Exp,
    /// Natural logarithm.
    Log,
    /// Square root.
    Sqrt,
    /// `|x|`
    Abs,
    /// `-x`
    Neg,
    /// `ln(1 + e^x)`
    Softplus,
    /// `x >= 0 ? x : alpha (e^x - 1)`
    Elu(f32),
}

/// Functions of two arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binary {
    /// `a + b`
    Add,
    /// `a - b`
    Sub,
    /// `a * b`
    Mul,
    /// `a / b`
    Div,
    /// `a^b`
    Pow,
    /// `min(a, b)`
    Min,
    /// `max(a, b)`
    Max,
}

impl ScalarFn {
    /// `kind(x)`.
    pub fn unary(kind: Unary) -> ScalarFn {
        ScalarFn::Unary(kind, Box::new(ScalarFn::X))
    }

    /// `max(x, min)` and `min(x, max)`.
    pub fn clamp(clamp: Clamp) -> ScalarFn {
        ScalarFn::unary(Unary::Clamp(clamp))
    }

    /// `kind(a, b)`.
    pub fn binary(kind: Binary, a: ScalarFn, b: ScalarFn) -> ScalarFn {
        ScalarFn::Binary(kind, Box::new(a), Box::new(b))
    }

    /// The value at `x`, computed in 64 bits.
    pub fn eval(&self, x: f64) -> f64 {
        match self {
            ScalarFn::X => x,
            ScalarFn::Const(value) => *value as f64,
            ScalarFn::Unary(kind, a) => kind.eval(a.eval(x)),
            ScalarFn::Binary(kind, a, b) => kind.eval(a.eval(x), b.eval(x)),
        }
    }

    /// The bounds, if the function is a clamp.
    pub fn as_clamp(&self) -> Option<Clamp> {
        match self {
            ScalarFn::Unary(Unary::Clamp(clamp), a) if **a == ScalarFn::X => Some(*clamp),
            _ => None,
        }
    }

    /// `(a, b)` if the function is `a x + b`.
    pub fn as_affine(&self) -> Option<(f64, f64)> {
        match self {
            ScalarFn::X => Some((1.0, 0.0)),
            ScalarFn::Const(value) => Some((0.0, *value as f64)),
            ScalarFn::Unary(Unary::Neg, a) => a.as_affine().map(|(a, b)| (-a, -b)),
            ScalarFn::Unary(..) => None,
            ScalarFn::Binary(kind, lhs, rhs) => match (kind, lhs.as_affine()?, rhs.as_affine()?) {
                (Binary::Add, (a, b), (c, d)) => Some((a + c, b + d)),
                (Binary::Sub, (a, b), (c, d)) => Some((a - c, b - d)),
                (Binary::Mul, (a, b), (0.0, d)) | (Binary::Mul, (0.0, d), (a, b)) => Some((a * d, b * d)),
                (Binary::Div, (a, b), (0.0, d)) => Some((a / d, b / d)),
                _ => None,
            },
        }
    }

    /// `self` with every `x` replaced by `inner(x)`.
    pub fn of(&self, inner: &ScalarFn) -> ScalarFn {
        match self {
            ScalarFn::X => inner.clone(),
            ScalarFn::Const(value) => ScalarFn::Const(*value),
            ScalarFn::Unary(kind, a) => match (kind, a.of(inner)) {
                (Unary::Clamp(next), ScalarFn::Unary(Unary::Clamp(first), a)) => {
                    ScalarFn::Unary(Unary::Clamp(first.then(*next)), a)
                }
                (kind, a) => ScalarFn::Unary(*kind, Box::new(a)),
            },
            ScalarFn::Binary(kind, a, b) => ScalarFn::binary(*kind, a.of(inner), b.of(inner)),
        }
    }
}

impl Unary {
    fn eval(self, x: f64) -> f64 {
        match self {
            Unary::Clamp(clamp) => x.max(clamp.min as f64).min(clamp.max as f64),
            Unary::LeakyRelu(slope) => x.max(0.0) + slope as f64 * x.min(0.0),
            Unary::Sigmoid => 1.0 / (1.0 + (-x).exp()),
            Unary::HardSigmoid(alpha, beta) => (alpha as f64 * x + beta as f64).clamp(0.0, 1.0),
            Unary::HardSwish => x * (x / 6.0 + 0.5).clamp(0.0, 1.0),
            Unary::Tanh => x.tanh(),
            Unary::Erf => erf(x),
            Unary::Gelu => 0.5 * x * (1.0 + erf(x / std::f64::consts::SQRT_2)),
            Unary::GeluTanh => {
                let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
                0.5 * x * (1.0 + inner.tanh())
            }
            Unary::Exp => x.exp(),
            Unary::Log => x.ln(),
            Unary::Sqrt => x.sqrt(),
            Unary::Abs => x.abs(),
            Unary::Neg => -x,
            Unary::Softplus => x.max(0.0) + (-x.abs()).exp().ln_1p(),
            Unary::Elu(alpha) => x.max(0.0) + alpha as f64 * x.min(0.0).exp_m1(),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Unary::Clamp(c) if c == Clamp::RELU => "Relu",
            Unary::Clamp(c) if c == Clamp::RELU6 => "Relu6",
            Unary::Clamp(_) => "Clip",
            Unary::LeakyRelu(_) => "LeakyRelu",
            Unary::Sigmoid => "Sigmoid",
            Unary::HardSigmoid(..) => "HardSigmoid",
            Unary::HardSwish => "HardSwish",
            Unary::Tanh => "Tanh",
            Unary::Erf => "Erf",
            Unary::Gelu | Unary::GeluTanh => "Gelu",
            Unary::Exp => "Exp",
            Unary::Log => "Log",
            Unary::Sqrt => "Sqrt",
            Unary::Abs => "Abs",
            Unary::Neg => "Neg",
            Unary::Softplus => "Softplus",
            Unary::Elu(_) => "Elu",
        }
    }
}

impl Binary {
    fn eval(self, a: f64, b: f64) -> f64 {
        match self {
            Binary::Add => a + b,
            Binary::Sub => a - b,
            Binary::Mul => a * b,
            Binary::Div => a / b,
            Binary::Pow => a.powf(b),
            Binary::Min => a.min(b),
            Binary::Max => a.max(b),
        }
    }
}

/// One word for tables: the function's name, or `Map` for an expression of several.
impl std::fmt::Display for ScalarFn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            ScalarFn::Unary(kind, a) if **a == ScalarFn::X => kind.name(),
            _ => "Map",
        })
    }
}

/// Gauss error function to about 1e-15: the series for small `|x|`, the continued fraction of `erfc` (Lentz) beyond.
fn erf(x: f64) -> f64 {
    let a = x.abs();
    let value = if a < 2.5 {
        let mut term = a;
        let mut sum = a;
        for n in 1..80 {
            term *= -a * a / n as f64;
            sum += term / (2 * n + 1) as f64;
        }
        sum * std::f64::consts::FRAC_2_SQRT_PI
    } else if a < 6.5 {
        let tail = (1..=60).rev().fold(a, |t, n| a + n as f64 / 2.0 / t);
        1.0 - (-a * a).exp() / tail / std::f64::consts::PI.sqrt()
    } else {
        1.0
    };
    value.copysign(x)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn erf_matches_the_tables() {
        for (x, y) in
            [(0.5, 0.5204998778130465), (1.0, 0.8427007929497149), (2.4, 0.9993114861033549), (3.0, 0.9999779095030014)]
        {
            assert!((erf(x) - y).abs() < 1e-13 && erf(-x) == -erf(x), "{x}: {}", erf(x));
        }
    }

    #[test]
    fn composition_is_application() {
        let silu = ScalarFn::binary(Binary::Mul, ScalarFn::X, ScalarFn::unary(Unary::Sigmoid));
        let relu = ScalarFn::clamp(Clamp::RELU);
        for x in [-3.0, -0.1, 0.0, 2.0] {
            assert_eq!(silu.of(&relu).eval(x), silu.eval(relu.eval(x)));
        }
        assert_eq!(
            ScalarFn::clamp(Clamp { min: -1.0, max: 1.0 }).of(&relu).as_clamp(),
            Some(Clamp { min: 0.0, max: 1.0 })
        );
    }
}
