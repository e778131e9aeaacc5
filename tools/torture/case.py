"""What a torture module is, and the short ways of writing one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Draw:
    """One input tensor, drawn anew for every sample."""

    shape: tuple[int, ...]
    kind: str = "normal"
    low: int = 0
    high: int = 2

    def draw(self, generator: torch.Generator) -> Tensor:
        """Values of this kind."""
        if self.kind == "normal":
            return torch.randn(self.shape, generator=generator)
        if self.kind == "uniform":
            return torch.rand(self.shape, generator=generator) * (self.high - self.low) + self.low
        whole = torch.randint(self.low, self.high, self.shape, generator=generator)
        return whole.to(getattr(torch, self.kind))


def F(*shape: int) -> Draw:  # noqa: N802 - reads as a type
    """Normal floats."""
    return Draw(shape)


def U(low: int, high: int, *shape: int) -> Draw:  # noqa: N802
    """Uniform floats."""
    return Draw(shape, "uniform", low, high)


def I(high: int, *shape: int, low: int = 0, kind: str = "int64") -> Draw:  # noqa: E743, N802
    """Integers from ``low`` up to ``high``, that not included."""
    return Draw(shape, kind, low, high)


def B(*shape: int) -> Draw:  # noqa: N802
    """Booleans."""
    return Draw(shape, "bool")


@dataclass(frozen=True, kw_only=True)
class Case:
    """A module with the form of its inputs: a :class:`Draw`, or a tuple or dict of what the module takes.

    ``dynamic`` declares dynamic axes by input name, ``other`` is the form at other sizes; ``reason`` are words of which
    a refusal has to name one, where neither a node nor a gate does. ``half``: forward asks for 16 bits somewhere, where
    PyTorch itself is no nearer to the exact result than 30 dB.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Any
    dynamic: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    other: Any = None
    reason: tuple[str, ...] = ()
    half: bool = False

    @property
    def family(self) -> str:
        """The part before the slash."""
        return self.name.partition("/")[0]

    def example(self, seed: int, *, other: bool = False) -> Any:
        """Inputs as a user writes them, of one seed."""
        return _drawn(self.other if other else self.inputs, torch.Generator().manual_seed(seed))


def _drawn(form: Any, generator: torch.Generator) -> Any:
    if isinstance(form, Draw):
        return form.draw(generator)
    if isinstance(form, Mapping):
        return {k: _drawn(v, generator) for k, v in form.items()}
    if isinstance(form, list | tuple):
        return type(form)(_drawn(v, generator) for v in form)
    return form


CASES: dict[str, Case] = {}


def case(name: str, build: Callable[[], nn.Module], inputs: Any, **more: Any) -> None:
    """Add a case; a name that is there already is an error."""
    if name in CASES:
        raise ValueError(f"two torture modules are named {name}")
    CASES[name] = Case(name=name, build=build, inputs=inputs, **more)


# --- short modules ----------------------------------------------------------------------------------


class Inside(nn.Module):
    """A weighted layer, the operator, a weighted layer: so that quantization has something to do.

    Of several results all that are floats go through the last layer, side by side; the others are results.
    """

    def __init__(self, first: nn.Module, what: Callable[..., Any], example: Tensor, outputs: int = 6) -> None:
        super().__init__()
        self.first, self.what = first, what
        with torch.no_grad():
            flat, _ = self.middle(example)
        self.last = nn.Linear(flat.shape[1], outputs)

    def middle(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        made = self.what(self.first(x))
        parts = made if isinstance(made, tuple) else (made,)
        floats = [p.reshape(x.shape[0], -1) for p in parts if p.is_floating_point()]
        return torch.cat(floats, 1), tuple(p for p in parts if not p.is_floating_point())

    def forward(self, x: Tensor) -> Any:
        flat, others = self.middle(x)
        y = self.last(flat)
        return (y, *others) if others else y


class Alone(nn.Module):
    """An operator of one input, without weights."""

    def __init__(self, what: Callable[..., Any]) -> None:
        super().__init__()
        self.what = what

    def forward(self, x: Tensor) -> Any:
        return self.what(x)


class Both(nn.Module):
    """An operator of two inputs, without weights."""

    def __init__(self, what: Callable[..., Any]) -> None:
        super().__init__()
        self.what = what

    def forward(self, x: Tensor, y: Tensor) -> Any:
        return self.what(x, y)


def image(name: str, what: Callable[..., Any], size: int | tuple[int, int] = 12, channels: int = 8) -> None:
    """``what`` of the channels of a convolution: ``[1, channels, height, width]``."""
    height, width = (size, size) if isinstance(size, int) else size

    def build() -> nn.Module:
        return Inside(nn.Conv2d(3, channels, 3, padding=1), what, torch.zeros(1, 3, height, width))

    case(name, build, F(1, 3, height, width))


def rows(name: str, what: Callable[..., Any], shape: tuple[int, ...] = (6, 8)) -> None:
    """``what`` of what a Linear gives: ``[1, *shape]``."""

    def build() -> nn.Module:
        return Inside(nn.Linear(5, shape[-1]), what, torch.zeros(1, *shape[:-1], 5))

    case(name, build, F(1, *shape[:-1], 5))


def volume(name: str, what: Callable[..., Any], size: int = 6) -> None:
    """``what`` of the channels of a 3-D convolution: ``[1, 4, size, size, size]``."""

    def build() -> nn.Module:
        return Inside(nn.Conv3d(2, 4, 3, padding=1), what, torch.zeros(1, 2, size, size, size))

    case(name, build, F(1, 2, size, size, size))


def alone(name: str, what: Callable[..., Any], inputs: Draw, **more: Any) -> None:
    """``what`` of one input."""
    case(name, lambda: Alone(what), inputs, **more)


def both(name: str, what: Callable[..., Any], x: Draw, y: Draw, **more: Any) -> None:
    """``what`` of two inputs."""
    case(name, lambda: Both(what), (x, y), **more)
