"""Branches and loops."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from torture.case import F, I, case


class Cond(nn.Module):
    """torch.cond, each branch with weights of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 4), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, lambda t: self.first(t).relu(), lambda t: self.second(t) * 2, (x,))


class Nested(nn.Module):
    """A branch in a branch."""

    def forward(self, x: Tensor) -> Tensor:
        def inner(t: Tensor) -> Tensor:
            return torch.cond(t[0, 0] > 0, lambda u: u * 2, lambda u: u - 1, (t,))

        return torch.cond(x.mean() > 0, inner, lambda t: t.abs(), (x,))


class While(nn.Module):
    """A loop whose length depends on the input."""

    def forward(self, x: Tensor) -> Tensor:
        from torch._higher_order_ops import while_loop

        start = (torch.zeros((), dtype=torch.int64), x)
        return while_loop(lambda i, t: (i < 8) & (t.abs().amax() < 4), lambda i, t: (i + 1, t * 1.5), start)[
            1
        ]


class Scan(nn.Module):
    """A running mean by scan."""

    def forward(self, x: Tensor) -> Tensor:
        from torch._higher_order_ops import scan

        def step(state: Tensor, item: Tensor) -> tuple[Tensor, Tensor]:
            state = 0.9 * state + 0.1 * item
            return state, state * 2

        return scan(step, torch.zeros(3), x)[1]


class BySize(nn.Module):
    """A Python branch on the shape."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Linear(8, 4), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.wide(x) if x.shape[-1] > 4 else self.narrow(x)


class ByValue(nn.Module):
    """A Python branch on a value: no graph can have it."""

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x * 2
        return x - 1


class Flags(nn.Module):
    """Branches on attributes, arguments and training, asserts and a comprehension."""

    def __init__(self) -> None:
        super().__init__()
        self.deep, self.blocks = True, nn.ModuleList(nn.Linear(5, 5) for _ in range(3))
        self.named = nn.ModuleDict({"a": nn.ReLU(), "b": nn.Tanh()})

    def forward(self, x: Tensor, scale: float = 0.5, which: str = "b") -> Tensor:
        assert x.dim() == 2, "a batch of vectors"
        for block in self.blocks if self.deep else []:
            x = self.named[which](block(x)) * scale
        return sum([x * i for i in range(1, 3)]) if not self.training else x


class Recursive(nn.Module):
    """It calls itself on halves."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] == 1:
            return x
        half = x.shape[1] // 2
        return torch.cat([self(x[:, :half]).cumsum(1), self(x[:, half:]) * 2], 1)


class Checked(nn.Module):
    """Activation checkpoints, as training leaves them in."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Linear(5, 5), nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.block, x, use_reentrant=False)


class Mapped(nn.Module):
    """torch.vmap over the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.vmap(lambda row: self.layer(row).softmax(-1) * row.norm())(x)


class Gradient(nn.Module):
    """A gradient inside of forward."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.func.grad(lambda t: (t**3).sum())(x)


class Early(nn.Module):
    """Exits early by a mask, without a branch."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = nn.ModuleList(nn.Linear(5, 5) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        done = torch.zeros(x.shape[0], 1, dtype=torch.bool)
        for step in self.steps:
            x = torch.where(done, x, step(x).tanh())
            done = done | (x.amax(1, keepdim=True) > 0.8)
        return x


class Steps(nn.Module):
    """A loop over a dynamic axis, unrolled by the example's size."""

    def forward(self, x: Tensor) -> Tensor:
        state = torch.zeros_like(x[:, 0])
        for i in range(x.shape[1]):
            state = state * 0.5 + x[:, i]
        return state


BATCH: dict[str, Any] = {"dynamic": {"x": {0: "batch"}}}
case("control/cond", Cond, F(2, 6))
case("control/cond-nested", Nested, F(2, 6))
case("control/while", While, F(2, 3), reason=("while_loop",))
case("control/scan", Scan, F(5, 3), reason=("scan",))
case("control/by-size", BySize, F(2, 8), other=F(5, 8), **BATCH)
case("control/by-value", ByValue, F(2, 3), reason=("torch.cond", "branch"))
case("control/flags", Flags, F(2, 5))
case("control/recursive", Recursive, F(2, 8))
case("control/checkpoint", Checked, F(2, 5))
case("control/vmap", Mapped, F(4, 5))
case("control/gradient", Gradient, F(4, 5))
case("control/early-exit", Early, F(4, 5), other=F(7, 5), **BATCH)
case("control/unrolled", Steps, F(2, 5, 3), dynamic={"x": {0: "batch"}}, other=F(4, 5, 3))


class Branches(nn.Module):
    """A Python branch on a value, scripted: both branches are in the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        if bool(y.sum() > 0):
            return y * 2
        return y - 1


class Loops(nn.Module):
    """A loop over the input's length, scripted."""

    def forward(self, x: Tensor) -> Tensor:
        out = torch.zeros_like(x[0])
        for i in range(x.size(0)):
            out = out * 0.5 + x[i]
        return out


class Chain(nn.Module):
    """Nothing special."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 6, 3), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.conv(x).relu().mean((2, 3)))


class Holds(nn.Module):
    """A module with a scripted part."""

    def __init__(self) -> None:
        super().__init__()
        self.part, self.last = torch.jit.script(Chain()), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.part(x))


case("script/chain", lambda: torch.jit.script(Chain()), F(1, 3, 8, 8))
case("script/traced", lambda: torch.jit.trace(Chain().eval(), torch.ones(1, 3, 8, 8)), F(1, 3, 8, 8))
case("script/branches", lambda: torch.jit.script(Branches()), F(2, 4))
case("script/loop", lambda: torch.jit.script(Loops()), F(5, 4))
case("script/part", Holds, F(1, 3, 8, 8))
case("script/frozen", lambda: torch.jit.freeze(torch.jit.script(Chain().eval())), F(1, 3, 8, 8))


class Integers(nn.Module):
    """Arithmetic of sizes, indices and lengths in one graph."""

    def forward(self, ids: Tensor) -> Tensor:
        counts = (ids[:, :, None] == torch.arange(5)).sum(1)
        return counts * 2 - ids.amax(1, keepdim=True) // 2


case("control/integers", Integers, I(5, 2, 7))
