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
