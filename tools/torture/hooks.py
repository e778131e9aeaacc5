"""Hooks, parametrizations, norms of weights, and other ways in which a module is more than its forward."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from torture.case import F, case


class Layers(nn.Module):
    """Three layers to hang things on."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 6, 3), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.conv(x).relu().mean((2, 3)))


def hooked(register: Any) -> Any:
    """Layers after ``register`` has seen them."""

    def build() -> nn.Module:
        module = Layers()
        register(module)
        return module

    return build


class Symmetric(nn.Module):
    """A parametrization: the weight is symmetric."""

    def forward(self, w: Tensor) -> Tensor:
        return w.triu() + w.triu(1).mT


class Squared(nn.Module):
    """A layer whose weight is symmetric."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 5)
        parametrize.register_parametrization(self.layer, "weight", Symmetric())

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def spectral(module: Layers) -> None:
    parametrizations.spectral_norm(module.conv)
    nn.utils.spectral_norm(module.last)


case(
    "hook/forward",
    hooked(lambda m: m.conv.register_forward_hook(lambda _m, _i, o: o * 0.5 + 1)),
    F(1, 3, 8, 8),
)
case(
    "hook/forward-pre",
    hooked(lambda m: m.register_forward_pre_hook(lambda _m, args: (args[0] - 0.5,))),
    F(1, 3, 8, 8),
)
case(
    "hook/keywords",
    hooked(
        lambda m: m.register_forward_pre_hook(
            lambda _m, a, k: (a, {n: v * 2 for n, v in k.items()}), with_kwargs=True
        )
    ),
    F(1, 3, 8, 8),
)
case("hook/weight-norm", hooked(lambda m: parametrizations.weight_norm(m.conv)), F(1, 3, 8, 8))
case("hook/weight-norm-old", hooked(lambda m: nn.utils.weight_norm(m.conv, dim=None)), F(1, 3, 8, 8))
case("hook/spectral-norm", hooked(spectral), F(1, 3, 8, 8))
case("hook/orthogonal", hooked(lambda m: parametrizations.orthogonal(m.last)), F(1, 3, 8, 8))
case("hook/parametrization", Squared, F(2, 5))
case("hook/pruned", hooked(lambda m: prune.l1_unstructured(m.conv, "weight", 0.5)), F(1, 3, 8, 8))


class Caches(nn.Module):
    """A table that forward makes on its first call and keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.table: Tensor | None = None
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        if self.table is None or self.table.shape[0] < x.shape[1]:
            self.table = torch.arange(x.shape[1] * 4.0).reshape(-1, 4).cos()
        return self.layer(x + self.table[: x.shape[1]])


class Counts(nn.Module):
    """A buffer that counts calls, which no output shows."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.layer(x)


class Remembers(nn.Module):
    """An output that depends on the last call."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("last", torch.zeros(1, 4))

    def forward(self, x: Tensor) -> Tensor:
        y = x + self.last
        self.last.copy_(x)
        return y


class Noisy(nn.Module):
    """Noise in every call."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x)


class Tied(nn.Module):
    """An embedding whose weight is the last layer's."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 5, bias=False), nn.Linear(5, 8)
        self.last.weight = nn.Parameter(self.first.weight.mT)
        self.first.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).relu()) @ self.first.weight.mT


class Lazy(nn.Module):
    """Layers that learn their width from the first call."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.LazyConv2d(6, 3), nn.LazyLinear(4)
        self(torch.zeros(1, 3, 8, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.conv(x).relu().flatten(1))


class Dropped(nn.Module):
    """Dropout of every kind, which evaluation ignores."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.Sequential(
            nn.Conv2d(3, 6, 3),
            nn.Dropout2d(),
            nn.AlphaDropout(),
            nn.FeatureAlphaDropout(),
            nn.Flatten(),
            nn.Dropout(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.parts(x)


case("state/lazy-table", Caches, F(1, 6, 4))
case("state/counter", Counts, F(2, 4))
case("state/remembers", Remembers, F(1, 4), reason=("state",))
case("state/noise", Noisy, F(1, 4), reason=("random",))
case("state/tied", Tied, F(2, 8))
case("state/lazy-layers", Lazy, F(1, 3, 8, 8))
case("state/dropout", Dropped, F(1, 3, 8, 8))
