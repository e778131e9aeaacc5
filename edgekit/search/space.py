"""What the search tries: for each step its strengths, from mild to strong, and its other choices. Data only.

A step declares ``SPACE: ClassVar[Mapping[str, tuple[Scalar, ...]]]``: option → values. The first option is the
step's strength, its values ordered from mild to strong; of every other option the first value is what a strength
is tried with first. ``AID: ClassVar[bool] = True`` says that the step makes nothing smaller by itself (it heals what
others did): it is tried in combinations only, and its values are its own. A step without ``SPACE`` and without an
entry below is not searched.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from edgekit.compress.registry import from_options, registry
from edgekit.compress.step import Scalar, Step, options

Space = Mapping[str, tuple[Scalar, ...]]

_EPOCHS = (0.0, 1.0, 3.0)
_DEFAULT: Mapping[str, Space] = {
    "depth": {"share": (0.1, 0.2, 0.35, 0.5), "training.epochs": _EPOCHS},
    "shrink": {
        "macs": (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2),
        "training.epochs": _EPOCHS,
    },
    "low-rank": {
        "parameters": (0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3),
        "aware": (True, False),
        "training.epochs": _EPOCHS,
    },
    "distill": {
        "training.epochs": (1.0, 3.0),
        "soft": (0.9, 0.5),
        "temperature": (2.0, 4.0),
        "features": (0.0, 1.0),
    },
    "sparsify": {
        "l1": (1e-6, 1e-5, 1e-4),
        "group": (0.0, 1e-4),
        "training.epochs": (1.0, 3.0),
    },
    "prune": {
        "sparsity": (0.2, 0.4, 0.6, 0.7, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.985, 0.99),
        "training.epochs": _EPOCHS,
        "normalize": (False, True),
    },
    "cluster": {
        "values": (256, 128, 64, 32, 24, 16, 12, 8, 6, 5, 4, 3),
        "training.epochs": (0.0, 1.0),
        "bias": (0.0, 0.02, 0.05),
    },
    "qat": {
        "weights": (8, 7, 6, 5, 4, 3, 2),
        "activations": (0, 8),
        "training.epochs": _EPOCHS,
    },
}
_AIDS = ("distill",)
FOLDED = ("cluster",)
"""Steps before which batch norms are folded, where there are any."""
APART = (frozenset({"qat", "cluster"}),)
"""Steps that undo one another, or find nothing left to do."""

_ORDER = ("depth", "shrink", "low-rank", "sparsify", "distill", "", "prune", "qat", "cluster")
"""Structure first, then what training of all weights would undo. Steps that are not named stand at ``""``."""

_RATE = "training.rate"
_EPOCH = "training.epochs"


def _rank(name: str) -> tuple[int, str]:
    return _ORDER.index(name) if name in _ORDER else _ORDER.index(""), name


@dataclass(frozen=True, kw_only=True)
class Method:
    """One step's part of the space. ``strengths`` are values of ``strength``; ``choices`` the other options;
    ``rate`` what it trains with, where it does not keep its own; ``aid``: see :mod:`edgekit.search.space`."""

    name: str
    strength: str
    strengths: tuple[Scalar, ...]
    choices: Space
    rate: float | None = None
    aid: bool = False

    def step(self, at: int, chosen: Mapping[str, Scalar]) -> Step:
        """The step of the strength number ``at`` with other choices."""
        given = {self.strength: self.strengths[at], **chosen}
        if self.rate is not None and given.get(_EPOCH):
            given[_RATE] = self.rate
        return from_options(self.name, given)

    def variants(self) -> list[dict[str, Scalar]]:
        """Ways to try the method alone: without training, then with the longest there is."""
        plain = {k: v[0] for k, v in self.choices.items()}
        long = self.choices.get(_EPOCH, ())
        return [plain, plain | {_EPOCH: long[-1]}] if len(long) > 1 else [plain]

    def trains(self, chosen: Mapping[str, Scalar]) -> bool:
        """Whether the step trains with these choices."""
        return self.strength == _EPOCH or bool(chosen.get(_EPOCH))

    def place(self, step: Step) -> tuple[int, dict[str, Scalar]]:
        """The strength's number and the choices of a step that this method made."""
        flat = options(step)
        return self.strengths.index(flat[self.strength]), {k: flat[k] for k in self.choices}


def completed(steps: Sequence[Step], *, folds: bool) -> tuple[Step, ...]:
    """``steps`` with what has to come before some of them: ``fold`` where the model has something to fold."""
    out: list[Step] = []
    for step in steps:
        if folds and step.NAME in FOLDED:
            out.append(from_options("fold", {}))
        out.append(step)
    return tuple(out)


def apart(names: Collection[str]) -> bool:
    """Whether two of these steps do not go together."""
    return any(pair <= set(names) for pair in APART)


def methods(*, max_epochs: float, rate: float | None = None) -> tuple[Method, ...]:
    """The registered steps that can be searched, in the order in which they are applied.

    ``max_epochs`` limits how long each may train, 0 without a task; longer values become as long as is allowed.
    Steps that cannot do without training are left out then. ``rate`` is what they train with (``None``: their own).
    """
    found = []
    kinds = registry()
    for name in sorted(kinds, key=_rank):
        kind = kinds[name]
        own, declared = options(kind()), space(name)
        kept = {k: _limited(k, v, max_epochs) for k, v in declared.items() if k in own}
        if not kept or not all(kept.values()):
            continue
        strength = next(iter(kept))
        found.append(
            Method(
                name=name,
                strength=strength,
                strengths=kept[strength],
                choices={k: v for k, v in kept.items() if k != strength},
                rate=rate if _RATE in own and _RATE not in declared else None,
                aid=bool(getattr(kind, "AID", name in _AIDS)),
            )
        )
    return tuple(found)


def space(name: str) -> Space:
    """What is declared for the step ``name``; empty where nothing is."""
    declared: Space = registry()[name].SPACE or _DEFAULT.get(name, {})
    return declared


_LOOKS = ("aware", "activations")
"""Options that look at the task's training data when they are set."""


def _limited(name: str, values: tuple[Scalar, ...], limit: float) -> tuple[Scalar, ...]:
    """Epochs within the limit, each once, and what does without data where there is none to train on; empty for a
    step that cannot."""
    if not limit and (name.endswith("epochs") or name in _LOOKS):
        return tuple(v for v in values if not v)
    if name.endswith("epochs"):
        return tuple(dict.fromkeys(min(float(v), limit) for v in values))
    return values
