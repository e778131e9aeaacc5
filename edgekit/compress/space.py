"""What the search tries: for each step its strengths, from mild to strong, and its other choices. Data only.

A step declares ``SPACE: ClassVar[Mapping[str, tuple[Scalar, ...]]]``: option → values. The first option is the
step's strength, its values ordered from mild to strong; of every other option the first value is what a strength
is tried with first. A step without ``SPACE`` and without an entry below is not searched.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgekit.compress.step import Scalar, Step, from_options, options, registry

Space = Mapping[str, tuple[Scalar, ...]]

_DEFAULT: Mapping[str, Space] = {
    "depth": {"share": (0.1, 0.2, 0.35, 0.5), "training.epochs": (0.0, 1.0, 3.0)},
    "shrink": {
        "macs": (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2),
        "training.epochs": (0.0, 1.0, 3.0),
    },
    "low-rank": {
        "parameters": (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3),
        "aware": (True, False),
        "training.epochs": (0.0, 1.0, 3.0),
    },
    "prune": {
        "sparsity": (0.2, 0.4, 0.6, 0.7, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98),
        "training.epochs": (0.0, 1.0, 3.0),
        "normalize": (False, True),
    },
    "cluster": {
        "values": (256, 128, 64, 32, 16, 12, 8, 6, 4),
        "training.epochs": (0.0, 1.0),
        "bias": (0.0, 0.02),
    },
}


_ORDER = ("depth", "shrink", "low-rank", "distill", "", "prune", "qat", "cluster")
"""Structure first, then what training of all weights would undo. Steps that are not named stand at ``""``."""


def _rank(name: str) -> tuple[int, str]:
    return _ORDER.index(name) if name in _ORDER else _ORDER.index(""), name


@dataclass(frozen=True, kw_only=True)
class Method:
    """One step's part of the space. ``strengths`` are values of ``strength``; ``choices`` the other options."""

    name: str
    strength: str
    strengths: tuple[Scalar, ...]
    choices: Space

    def step(self, at: int, chosen: Mapping[str, Scalar]) -> Step:
        """The step of the strength number ``at`` with other choices."""
        return from_options(self.name, {self.strength: self.strengths[at], **chosen})

    def variants(self) -> list[dict[str, Scalar]]:
        """Ways to try the method alone: without training, then with the longest there is."""
        trained = {k: v[-1] for k, v in self.choices.items() if k.endswith("epochs") and v[-1] != v[0]}
        plain = {k: v[0] for k, v in self.choices.items()}
        return [plain, plain | trained] if trained else [plain]


def methods(*, max_epochs: float) -> tuple[Method, ...]:
    """The registered steps that can be searched, in the order in which they are applied.

    ``max_epochs`` limits how long each may train, 0 without a task; longer values become as long as is allowed.
    Steps that cannot do without training are left out then.
    """
    found = []
    kinds = registry()
    for name in sorted(kinds, key=_rank):
        kind = kinds[name]
        declared: Space = getattr(kind, "SPACE", None) or _DEFAULT.get(name, {})
        space = {k: v for k, v in declared.items() if k in options(kind())}
        if not space:
            continue
        kept = {k: _limited(k, v, max_epochs) for k, v in space.items()}
        if not all(kept.values()):
            continue
        strength = next(iter(kept))
        others = {k: v for k, v in kept.items() if k != strength}
        found.append(Method(name=name, strength=strength, strengths=kept[strength], choices=others))
    return tuple(found)


_LOOKS = ("aware",)
"""Options that look at the task's training data when they are set."""


def _limited(name: str, values: tuple[Scalar, ...], limit: float) -> tuple[Scalar, ...]:
    """Epochs within the limit, each once, and what does without data where there is none to train on; empty for a
    step that cannot."""
    if not limit and (name.endswith("epochs") or name in _LOOKS):
        return tuple(v for v in values if not v)
    if name.endswith("epochs"):
        return tuple(dict.fromkeys(min(float(v), limit) for v in values))
    return values
