"""What steps make of a layer's weight for good: zeros, few values, integers. It lasts through every later training.

A step that gives a weight such a property lays a :class:`Constraint` on its layer. Between trainings the weight is an
ordinary parameter that fulfils it, so that copies, state dicts, exports and later steps see nothing of it. While
anything trains (:func:`held`, in :func:`edgekit.compress.training.train.fit`), gradients lose what would break it, and
each update is projected back. Steps that cut a layer cut its constraints with it (:func:`cut`), a plan lays them anew
when it is loaded (:meth:`edgekit.compress.step.Step.restore`), and after every step of a recipe they are looked at
(:func:`check`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

import torch
from torch import nn

from edgekit.compress.hooks import Weighted, prunable, removed
from edgekit.errors import ComposeError, SourceError

_ATTRIBUTE = "_constraints"
_NAMED = 3


class Projection(Protocol):
    """One constraint on one parameter while it is trained."""

    def gradient(self, gradient: torch.Tensor) -> torch.Tensor:
        """The part of a gradient, in the weight's shape, that keeps the constraint."""
        ...

    def project(self, weight: torch.Tensor) -> None:
        """Make a weight that an update moved fulfil the constraint again, in place."""
        ...


class Constraint:
    """What a layer's weight stays, whatever trains it. Objects of it are never changed."""

    WHAT: ClassVar[str]
    """What is kept, for messages."""
    CHOSEN: ClassVar[bool] = False
    """Whether it leaves later steps nothing to choose: no float weights."""

    def open(self, layer: nn.Module) -> None:
        """Before a training: put a weight that can be trained in the place of one that cannot."""

    def close(self, layer: nn.Module) -> None:
        """After it: the inverse of :meth:`open`."""

    def projection(self, weight: torch.Tensor) -> Projection | None:
        """How ``weight``, which fulfils the constraint, is kept so; ``None`` if :meth:`open` saw to it."""
        del weight
        return None

    def cut(self, dim: int, kept: torch.Tensor) -> Constraint:
        """The constraint where only the indices ``kept`` of a dimension stay."""
        del dim, kept
        return self

    def holds(self, layer: nn.Module) -> bool:
        """Whether the layer's weight fulfils it."""
        raise NotImplementedError

    def identity(self) -> bytes:
        """For keys: what it keeps beside what the weight says."""
        return repr(self).encode()


@dataclass(frozen=True, eq=False)
class Zeros(Constraint):
    """Weights that stay zero: ``zeros`` is true where, in the weight's shape. ``pattern`` ``(n, m)``: of every m
    input channels of an output at most n are not zero."""

    WHAT: ClassVar[str] = "zeros"

    zeros: torch.Tensor
    pattern: tuple[int, int] = (1, 1)

    def projection(self, weight: torch.Tensor) -> Projection:
        """Itself, on the weight's device."""
        return replace(self, zeros=self.zeros.to(weight.device))

    def gradient(self, gradient: torch.Tensor) -> torch.Tensor:
        """None where the weight stays zero."""
        return gradient.masked_fill(self.zeros, 0.0)

    def project(self, weight: torch.Tensor) -> None:
        """Zero is put back."""
        weight.masked_fill_(self.zeros, 0.0)

    def cut(self, dim: int, kept: torch.Tensor) -> Zeros:
        """Of the weights that stay."""
        return replace(self, zeros=self.zeros.index_select(dim, kept.to(self.zeros.device)))

    def holds(self, layer: nn.Module) -> bool:
        """Whether they are zero, in the pattern."""
        weight = _weight(layer)
        if weight.shape != self.zeros.shape or bool(weight[self.zeros.to(weight.device)].any()):
            return False
        most, of = self.pattern
        if of == 1:
            return True
        runs = weight.movedim(1, -1)
        return runs.shape[-1] % of == 0 and int((runs.reshape(-1, of) != 0).sum(1).max()) <= most

    def identity(self) -> bytes:
        """The mask and the pattern."""
        return repr(self.pattern).encode() + self.zeros.cpu().numpy().tobytes()


@dataclass(frozen=True)
class Values(Constraint):
    """At most ``count`` distinct values beside zero. Weights of one value move together."""

    WHAT: ClassVar[str] = "shared values"

    count: int

    def projection(self, weight: torch.Tensor) -> Projection:
        """The members of each value."""
        return _Members(weight.detach())

    def holds(self, layer: nn.Module) -> bool:
        """Whether there are no more."""
        return int(torch.count_nonzero(torch.unique(_weight(layer)))) <= self.count


class _Members:
    """Which weights have the same value. As with a table that they look up, each gets the sum of all their gradients;
    zero stays zero."""

    def __init__(self, weight: torch.Tensor) -> None:
        values, self.index = torch.unique(weight, return_inverse=True)
        self.zero = values == 0
        positions = torch.arange(weight.numel(), device=weight.device)
        first = positions.new_full((len(values),), weight.numel())
        self.first = first.scatter_reduce(0, self.index.flatten(), positions, "amin")

    def gradient(self, gradient: torch.Tensor) -> torch.Tensor:
        """The sum over the members, for each of them."""
        weights = gradient.flatten().double()
        sums = torch.bincount(self.index.flatten(), weights=weights, minlength=len(self.first))
        return sums.masked_fill(self.zero, 0.0).to(gradient.dtype)[self.index]

    def project(self, weight: torch.Tensor) -> None:
        """Each takes its first member's value: vectorised updates may round equal numbers differently."""
        weight.copy_(weight.flatten()[self.first][self.index])


# --- on layers ----------------------------------------------------------------------------------------------


def of(layer: nn.Module) -> tuple[Constraint, ...]:
    """The constraints on a layer's weight."""
    found: tuple[Constraint, ...] = getattr(layer, _ATTRIBUTE, ())
    return found


def lay(layer: nn.Module, *constraints: Constraint) -> None:
    """Constraints that the layer's weight fulfils from now on, beside those that it has."""
    _set(layer, (*of(layer), *constraints))


def lay_on(model: nn.Module, name: str, *laid: Constraint) -> None:
    """The same on the layer that a plan names; the weights may still be to come. Raises ``SourceError`` if there is
    none."""
    layer = dict(model.named_modules()).get(name)
    if layer is None:
        raise SourceError(
            f"the plan is of a model with a layer {name!r}, and this one has none",
            hint="the source has changed since it was compressed: compress it again",
        )
    lay(layer, *laid)


def believe(model: nn.Module) -> None:
    """Forget constraints that the weights do not fulfil: those of plans from before constraints lasted."""
    for layer in model.modules():
        _set(layer, tuple(c for c in of(layer) if c.holds(layer)))


def cut(layer: nn.Module, dim: int, kept: torch.Tensor) -> tuple[Constraint, ...]:
    """Cut a layer's constraints as its weight is cut; what they were, for :func:`put_back`."""
    before = of(layer)
    _set(layer, tuple(c.cut(dim, kept) for c in before))
    return before


def put_back(layer: nn.Module, before: tuple[Constraint, ...]) -> None:
    """Undo :func:`cut`."""
    _set(layer, before)


def _set(layer: nn.Module, constraints: tuple[Constraint, ...]) -> None:
    if constraints or of(layer):
        setattr(layer, _ATTRIBUTE, constraints)


def zeros(layer: nn.Module) -> torch.Tensor | None:
    """Where the layer's weight stays zero, all such constraints together."""
    masks = [c.zeros for c in of(layer) if isinstance(c, Zeros)]
    return torch.stack(masks).any(0) if masks else None


def values(layer: nn.Module) -> int | None:
    """How many values beside zero the layer's weight may have."""
    return min((c.count for c in of(layer) if isinstance(c, Values)), default=None)


def having(layers: Mapping[str, nn.Module], kind: type[Constraint]) -> list[str]:
    """The names of those layers that have a constraint of a kind."""
    return [name for name, layer in layers.items() if any(isinstance(c, kind) for c in of(layer))]


def float_layers(model: nn.Module, step: str) -> dict[str, Weighted]:
    """Linear and convolution layers with float weights. Raises ``SourceError`` where there is none, and
    ``ComposeError`` where a step before made integers of them."""
    chosen = set(integer_layers(model))
    layers = {n: m for n, m in prunable(model).items() if n not in chosen}
    if layers:
        return layers
    if chosen:
        raise ComposeError(
            f"{step} chooses float weights, and a step before it made integers of all of them",
            hint=f"let {step} come first, or leave layers float before it (qat(layers=NAME=0))",
        )
    raise SourceError("the model has no linear or convolution layer", hint="leave this step out")


def integer_layers(model: nn.Module) -> list[str]:
    """Names of the layers whose weights are no floats any more."""
    return [name for name, found in laid(model).items() if any(c.CHOSEN for c in found)]


def refuse(names: Iterable[str], message: str, *, hint: str) -> None:
    """Raise ``ComposeError`` if there are layers for which a step cannot keep what another gave them."""
    layers = list(names)
    if layers:
        more = f" and {len(layers) - _NAMED} more" if len(layers) > _NAMED else ""
        raise ComposeError(f"{message} ({', '.join(layers[:_NAMED])}{more})", hint=hint)


# --- in a recipe --------------------------------------------------------------------------------------------


@contextmanager
def held(model: nn.Module) -> Iterator[Callable[[], None]]:
    """Let what trains ``model`` in the block keep all constraints; gives what to call after each update.

    The model is on its device, and its optimizer is made inside the block: layers may get other parameters.
    """
    laid = [(layer, c) for layer in model.modules() for c in of(layer)]
    for layer, constraint in laid:
        constraint.open(layer)
    pairs: list[tuple[nn.Parameter, Projection]] = []
    for layer, constraint in laid:
        weight = _trained(layer)
        projection = constraint.projection(weight) if weight.requires_grad else None
        if projection is not None:
            pairs.append((weight, projection))

    def project() -> None:
        with torch.no_grad():
            for weight, projection in pairs:
                projection.project(weight)

    handles = [weight.register_hook(p.gradient) for weight, p in pairs]  # type: ignore[no-untyped-call]
    try:
        with removed(handles):
            yield project
    finally:
        for layer, constraint in reversed(laid):
            constraint.close(layer)


@contextmanager
def tried(model: nn.Module) -> Iterator[None]:
    """Forget what is laid on the layers of ``model`` in the block when it ends."""
    before = {layer: of(layer) for layer in model.modules()}
    try:
        yield
    finally:
        for layer, constraints in before.items():
            _set(layer, constraints)


def laid(model: nn.Module) -> dict[str, tuple[Constraint, ...]]:
    """All constraints by the name of their layer."""
    return {name: of(layer) for name, layer in model.named_modules() if of(layer)}


def check(model: nn.Module, before: Iterable[str], step: str) -> None:
    """Raise ``ComposeError`` unless all constraints still hold after a step; ``before`` are the layers that had any.

    Layers that are gone altogether took theirs with them.
    """
    layers = dict(model.named_modules())
    broken = [f"{name}: {c.WHAT}" for name, layer in layers.items() for c in of(layer) if not c.holds(layer)]
    lost = [name for name in before if name in layers and not of(layers[name])]
    refuse(
        broken + lost,
        f"{step} does not keep what a step before it made of layers",
        hint=f"put {step} before that step, or leave these layers out of one of them",
    )


def identity(model: nn.Module) -> str:
    """sha256 over all constraints; empty where there are none."""
    digest = hashlib.sha256()
    for name, constraints in laid(model).items():
        for constraint in constraints:
            digest.update(f"{name} {type(constraint).__name__} ".encode() + constraint.identity())
    return digest.hexdigest() if laid(model) else ""


def _weight(layer: nn.Module) -> torch.Tensor:
    weight = layer.weight
    assert isinstance(weight, torch.Tensor)
    return weight.detach()


def _trained(layer: nn.Module) -> nn.Parameter:
    """The layer's weight, or what lies under its parametrization."""
    plain = layer._parameters.get("weight")
    return plain if plain is not None else layer.get_parameter("parametrizations.weight.original")
