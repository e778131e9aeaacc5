"""Element types inside of forward, casts, autocast, quantized modules."""

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from torture.case import B, F, I, U, alone, case


class Cast(nn.Module):
    """A layer in another float type."""

    def __init__(self, kind: torch.dtype) -> None:
        super().__init__()
        self.kind, self.first, self.last = kind, nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).to(self.kind)
        return self.last((y * y.abs().sqrt()).softmax(-1).float())


class Auto(nn.Module):
    """Autocast inside of forward."""

    def __init__(self, kind: torch.dtype) -> None:
        super().__init__()
        self.kind, self.first, self.last = kind, nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", self.kind):
            y = self.first(x).relu()
        return self.last(y.float())


class Whole(nn.Module):
    """Weights in another type from the beginning."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x.to(self.first.weight.dtype)).relu()).float()


class Pixels(nn.Module):
    """Bytes of a picture, normalized inside."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.register_buffer("mean", torch.tensor([0.4, 0.5, 0.6])[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        return self.conv((x.float() / 255 - self.mean) / 0.25).relu().mean((2, 3))


class Frozen(nn.Module):
    """nn.LayerNorm and softmax kept in float32 inside of half precision."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(6, 6, dtype=torch.bfloat16), nn.LayerNorm(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.layer(x.bfloat16()).float())


case("type/float64-inside", lambda: Cast(torch.float64), F(2, 6))
case("type/float16-inside", lambda: Cast(torch.float16), F(2, 6), half=True)
case("type/bfloat16-inside", lambda: Cast(torch.bfloat16), F(2, 6), half=True)
case("type/autocast", lambda: Auto(torch.bfloat16), F(2, 6), half=True)
case("type/autocast-float16", lambda: Auto(torch.float16), F(2, 6), half=True)
case("type/float64-weights", lambda: Whole().double(), F(2, 6))
case("type/float16-weights", lambda: Whole().half(), F(2, 6), half=True)
case("type/bfloat16-weights", lambda: Whole().bfloat16(), F(2, 6), half=True)
case("type/bfloat16-part", Frozen, F(2, 6), half=True)
case("type/bytes", Pixels, I(256, 1, 3, 9, 9, kind="uint8"))
alone("type/casts", lambda x: (x.int(), x.bool(), x.long().float()), F(3, 5))
alone("type/int8", lambda x: (x.int() * 2).clamp(-100, 100).to(torch.int8), I(60, 3, 5, low=-60, kind="int8"))
alone("type/int16", lambda x: (x + 3).to(torch.int32) * 2, I(900, 3, 5, low=-900, kind="int16"))
alone("type/int32", lambda x: x * x - x // 3, I(900, 3, 5, low=-900, kind="int32"))
alone("type/int64-large", lambda x: x * 5_000_000_000 // 7, I(900, 3, 5, low=-900))
alone("type/boolean", lambda x: (~x, x.float().mean(0), x.int().cumsum(0)), B(3, 5))
alone("type/promoted", lambda x: x.int() * 0.5 + (x > 0) + torch.tensor(2, dtype=torch.int64), F(3, 5))
alone(
    "type/rounding",
    lambda x: (x.round(), torch.round(x * 10, decimals=1), x.floor().int(), x.ceil()),
    U(-3, 3, 3, 5),
)
alone(
    "type/tensor-made",
    lambda x: x + torch.full_like(x, 0.5) + x.new_ones(5) + torch.eye(3, 5) + torch.zeros(3, 5),
    F(3, 5),
)


def quiet(make: Any) -> Any:
    """Without the warning that torch.ao is going away."""

    def build() -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return make()

    return build


def plain() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)).eval()


def dynamic() -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(plain(), {nn.Linear}, dtype=torch.qint8)


def static() -> nn.Module:
    ao = torch.ao.quantization
    module = nn.Sequential(ao.QuantStub(), nn.Conv2d(3, 4, 3), nn.ReLU(), ao.DeQuantStub()).eval()
    module.qconfig = ao.get_default_qconfig("x86")
    prepared = ao.prepare(module)
    prepared(torch.randn(1, 3, 8, 8))
    return ao.convert(prepared)


def graphed() -> nn.Module:
    from torch.ao.quantization import quantize_fx

    example = torch.randn(4, 6)
    mapping = torch.ao.quantization.get_default_qconfig_mapping("x86")
    prepared = quantize_fx.prepare_fx(plain(), mapping, (example,))
    prepared(example)
    return quantize_fx.convert_fx(prepared)


def faked() -> nn.Module:
    ao = torch.ao.quantization
    module = nn.Sequential(
        ao.QuantStub(), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4), ao.DeQuantStub()
    ).train()
    module.qconfig = ao.get_default_qat_qconfig("x86")
    prepared = ao.prepare_qat(module)
    prepared(torch.randn(16, 6))
    return prepared.apply(ao.disable_observer).eval()


QUANTIZED = ("quantized", "torch.ao")
case("quantized/dynamic", quiet(dynamic), F(2, 6), reason=QUANTIZED)
case("quantized/static", quiet(static), F(1, 3, 8, 8), reason=QUANTIZED)
case("quantized/fx", quiet(graphed), F(2, 6), reason=QUANTIZED)
case("quantized/training", quiet(faked), F(2, 6), reason=QUANTIZED)
case("quantized/embedding", quiet(lambda: Stored()), I(20, 2, 5), reason=QUANTIZED)


class Stored(nn.Module):
    """Weights kept as bytes by the user's own hand, widened in forward."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(2)
        self.register_buffer(
            "table", torch.randint(-127, 128, (20, 6), generator=generator, dtype=torch.int8)
        )
        self.register_buffer("scale", torch.rand(20, 1, generator=generator))

    def forward(self, ids: Tensor) -> Tensor:
        return self.table[ids].float() * self.scale[ids]
