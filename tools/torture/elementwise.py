"""Activations and arithmetic, element by element."""

import torch
from torch import nn
from torch.nn import functional

from torture.case import B, F, I, U, alone, both, image, rows

ACTIVATIONS = {
    "celu": nn.CELU(0.7),
    "elu": nn.ELU(),
    "gelu-tanh": nn.GELU("tanh"),
    "glu": nn.GLU(1),
    "hardshrink": nn.Hardshrink(0.3),
    "hardsigmoid": nn.Hardsigmoid(),
    "hardswish": nn.Hardswish(),
    "hardtanh": nn.Hardtanh(-0.4, 0.9),
    "leaky-relu": nn.LeakyReLU(0.2),
    "logsigmoid": nn.LogSigmoid(),
    "mish": nn.Mish(),
    "relu6": nn.ReLU6(),
    "rrelu": nn.RReLU(),
    "selu": nn.SELU(),
    "silu": nn.SiLU(),
    "softmax2d": nn.Softmax2d(),
    "softmin": nn.Softmin(1),
    "softplus": nn.Softplus(2.0, 3.0),
    "softshrink": nn.Softshrink(0.2),
    "softsign": nn.Softsign(),
    "tanhshrink": nn.Tanhshrink(),
    "threshold": nn.Threshold(0.1, -0.5),
}
for _name, _module in ACTIVATIONS.items():
    image(f"activation/{_name}", _module)
image("activation/prelu", lambda x: functional.prelu(x, torch.linspace(0.1, 0.8, 8)))

ARITHMETIC = {
    "atan2": lambda x: torch.atan2(x[..., :4], x[..., 4:]),
    "clamp-tensors": lambda x: torch.clamp(x, torch.full((8,), -0.5), torch.linspace(0.1, 1, 8)),
    "copysign": lambda x: torch.copysign(x[..., :4], x[..., 4:]),
    "digamma": lambda x: torch.digamma(x.abs() + 0.5),
    "erfinv": lambda x: torch.erfinv(torch.tanh(x) * 0.9),
    "erfc": torch.erfc,
    "exp2": torch.exp2,
    "expm1": torch.expm1,
    "float-power": lambda x: torch.float_power(x.abs() + 0.1, 1.7).float(),
    "frac": torch.frac,
    "heaviside": lambda x: torch.heaviside(x, torch.tensor(0.5)) * x,
    "hypot": lambda x: torch.hypot(x[..., :4], x[..., 4:]),
    "i0": lambda x: torch.special.i0(x),
    "lerp": lambda x: torch.lerp(x[..., :4], x[..., 4:], 0.3),
    "lgamma": lambda x: torch.lgamma(x.abs() + 0.5),
    "log1p": lambda x: torch.log1p(x.abs()),
    "logaddexp": lambda x: torch.logaddexp(x[..., :4], x[..., 4:]),
    "logit": lambda x: torch.logit(torch.sigmoid(x), 1e-3),
    "nan-to-num": lambda x: torch.nan_to_num(torch.log(x), nan=-1.0, neginf=-2.0),
    "reciprocal-rsqrt": lambda x: torch.reciprocal(x.abs() + 1) + torch.rsqrt(x.abs() + 0.5),
    "rsub-addcmul": lambda x: torch.rsub(torch.addcmul(x, x, x, value=0.5), 2.0),
    "sign-trunc": lambda x: torch.sign(x) * 0.5 + torch.trunc(x * 2),
    "sinc": torch.sinc,
    "sinh-cosh": lambda x: torch.sinh(x) - torch.cosh(x) + torch.asinh(x),
    "tan-acos": lambda x: torch.tan(x * 0.3) + torch.acos(torch.tanh(x) * 0.9),
    "where-scalar": lambda x: torch.where(x > 0, x, 0.25),
    "xlogy": lambda x: torch.xlogy(x.abs(), x.abs() + 0.1),
}
for _name, _what in ARITHMETIC.items():
    rows(f"arithmetic/{_name}", _what)

both(
    "arithmetic/fmod-remainder",
    lambda x, y: (torch.fmod(x, y), torch.remainder(x, y)),
    F(3, 7),
    U(1, 4, 3, 7),
)
both("arithmetic/floor-divide", lambda x, y: (x // y, x % y), I(40, 3, 7, low=-40), I(9, 3, 7, low=1))
both("arithmetic/divide-rounded", lambda x, y: torch.div(x, y, rounding_mode="trunc"), F(3, 7), U(1, 3, 3, 7))
both("arithmetic/bitwise", lambda x, y: (x & y, x | y, x ^ y, ~x), I(200, 4, 5), I(200, 4, 5))
both("arithmetic/shifts", lambda x, y: (x << y, x >> y), I(60, 4, 5, kind="int32"), I(5, 4, 5, kind="int32"))
both("arithmetic/logical", lambda x, y: (x & y, x | ~y, torch.logical_xor(x, y)), B(4, 5), B(4, 5))
both("arithmetic/comparisons", lambda x, y: (x < y, x >= y, torch.isclose(x, y, atol=0.5)), F(4, 5), F(4, 5))
both("arithmetic/broadcast", lambda x, y: x * y + y.sum(), F(4, 1, 5), F(3, 1))
alone("arithmetic/special-values", lambda x: (torch.isnan(x.log()), torch.isinf(1 / x.round())), F(5, 9))
alone("arithmetic/integer-power", lambda x: x**2 + 2**x, I(6, 3, 4))
