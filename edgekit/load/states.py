"""Inputs that take an output of the step before: a recurrent detector's ``state`` and ``stateN``, a stream's caches.

What a runtime does to such a model shows only over many steps, each with the states that it made itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING

from edgekit.errors import UnknownNameError, UsageError
from edgekit.types import Option, TensorSpec

if TYPE_CHECKING:
    from edgekit.types import Array

NONE = "none"
"""``--state NAME=none``: the input is no state, whatever it is called."""

_STATES = frozenset(
    ["state", "states", "hidden", "h", "c", "hx", "cx", "hc", "carry", "cache", "caches", "recurrent"]
)
_STORES = frozenset(
    ["memory", "memories", "mem", "history", "hist", "buffer", "buffers", "buf", "ring", "fifo"]
)
_EARLIER = frozenset(["prev", "previous", "past", "last"])
"""Beside another word they say when (``prev_frame``), alone what it is."""
_WORDS = _STATES | _STORES | _EARLIER
_BEFORE = _EARLIER | frozenset(["in", "input", "old", "init", "initial"])
_AFTER = frozenset(["out", "output", "new", "next", "present", "n", "t"])
_NUMBER = re.compile(r"\d+")
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")


@dataclass(frozen=True, kw_only=True)
class States:
    """The output that each state takes, by its input; ``declared``: the user said so."""

    pairs: Mapping[str, str] = field(default_factory=dict)
    declared: bool = False

    def __bool__(self) -> bool:
        return bool(self.pairs)

    def fed(self, inputs: Mapping[str, Array], before: Mapping[str, Array] | None) -> dict[str, Array]:
        """``inputs`` with the states that the outputs ``before`` hold; as they are in the first step."""
        if before is None:
            return dict(inputs)
        return {**inputs, **{name: before[output] for name, output in self.pairs.items()}}

    def others(self, outputs: Mapping[str, Array]) -> dict[str, Array]:
        """The outputs that are no states; all where there are no others."""
        states = set(self.pairs.values())
        return {n: a for n, a in outputs.items() if n not in states} or dict(outputs)

    def __str__(self) -> str:
        return ", ".join(f"{name} from {output}" for name, output in self.pairs.items())


def states_of(
    inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], declared: Mapping[str, Option]
) -> States:
    """What ``--state`` says, and the states that inputs and outputs show by their names, types and shapes.

    Raises :class:`UnknownNameError` for an input or output that is none, :class:`UsageError` for two that cannot be one
    state.
    """
    refused = {name for name, output in declared.items() if str(output) == NONE}
    wanted = {name: str(output) for name, output in declared.items() if name not in refused}
    takes, gives = {s.name: s for s in inputs}, {s.name: s for s in outputs}
    for name in declared:
        if name not in takes:
            raise UnknownNameError("input", name, takes, where="--state")
    for name, output in wanted.items():
        if output not in gives:
            raise UnknownNameError("output", output, gives, where=f"--state {name}")
        if not _one(takes[name], gives[output]):
            raise UsageError(
                f"--state {name}={output}: {gives[output]} cannot be the next {takes[name]}",
                hint="a state's output has the type and the shape of its input",
            )
    if wanted:
        return States(pairs=wanted, declared=True)
    found = dict(_recognised([s for s in inputs if s.name not in refused], outputs))
    # Something has to come in beside the states, and to come out: else it is no step of a stream.
    whole = len(found) < min(len(inputs), len(outputs)) and len(set(found.values())) == len(found)
    return States(pairs=found if whole else {})


def at_rest(
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    states: States,
    declared: Mapping[str, Option],
    rows: Iterable[Mapping[str, Array]],
) -> dict[str, tuple[str, ...]]:
    """Inputs that may be states though nothing calls them so, with the outputs that could be the next ones.

    They are zero in all of ``rows``, as a state is where a stream begins, and an output has their type and shape. None
    where the user named the states, and none of those that he said are no states.
    """
    if states.declared:
        return {}
    taken = set(states.pairs.values())
    free = [o for o in outputs if o.name not in taken]
    asked = [s for s in inputs if s.name not in states.pairs and s.name not in declared]
    # Integers do not drift: token types and masks are zero, too.
    asked = [s for s in asked if s.dtype.startswith(("float", "bfloat"))]
    found = {s.name: tuple(o.name for o in free if _one(s, o)) for s in asked}
    left = {name: given for name, given in found.items() if given}
    # As for states by name: a step of a stream takes and gives something else, too.
    if len(states.pairs) + len(left) >= min(len(inputs), len(outputs)):
        return {}
    anything = False
    for row in rows:
        anything, left = True, {name: given for name, given in left.items() if not row[name].any()}
        if not left:
            break
    return left if anything else {}


def _recognised(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> Iterator[tuple[str, str]]:
    """Inputs that are called states, each with the output of its type and shape: the one whose name says the same, or
    where the names say nothing (``output_1``), those of one shape in their order."""
    named = [s for s in inputs if _is_state(s.name)]
    for _, group in groupby(sorted(named, key=_form), key=_form):
        alike = sorted(group, key=inputs.index)
        free = [o for o in outputs if _one(alike[0], o)]
        by_name = {s.name: _called(s.name, [o.name for o in free]) for s in alike}
        if all(len(found) == 1 for found in by_name.values()):
            yield from ((name, found[0]) for name, found in by_name.items())
        elif len(free) == len(alike):
            yield from ((s.name, o.name) for s, o in zip(alike, free, strict=True))


def _called(name: str, others: Sequence[str]) -> list[str]:
    """Those of ``others`` that say the same as ``name``; of several the one with its numbers."""
    found = [o for o in others if _stem(o) == _stem(name)]
    return [o for o in found if _NUMBER.findall(o) == _NUMBER.findall(name)] if len(found) > 1 else found


def _is_state(name: str) -> bool:
    """Whether an input is called a state; ``hidden_states`` are what the layers of a transformer take."""
    stem = _stem(name)
    return stem[-2:] != ("hidden", "states") and any(word in _WORDS for word in stem)


def _stem(name: str) -> tuple[str, ...]:
    """What a name says without before, after and numbers: ``h0`` and ``hn``, ``state_in`` and ``stateN`` are one."""
    words = [word.lower() for word in _WORD.findall(re.sub(r"(?i)(?<=\b[hc])[n0]\b", "", name))]
    return tuple(w for w in words if w not in _BEFORE | _AFTER) or tuple(words)


def _form(spec: TensorSpec) -> tuple[str, str]:
    return spec.dtype, str(spec.shape)


def _one(state: TensorSpec, output: TensorSpec) -> bool:
    """Whether ``output`` can be the next ``state``: free axes may be anything until it is run."""
    return (
        state.dtype == output.dtype
        and len(state.shape) == len(output.shape)
        and all(
            isinstance(a, str) or isinstance(b, str) or a == b
            for a, b in zip(state.shape, output.shape, strict=True)
        )
    )
