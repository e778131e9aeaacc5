"""What forward does beside computing its outputs: it may keep state, draw random numbers, or write into its inputs.

A graph has none of these: writing into inputs is allowed (they are copies), state and randomness are refused, by name.
"""

from __future__ import annotations

import pickle
import random
from collections import deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from edgekit.errors import ExportError, first_line
from edgekit.graph.export.account import caller, frame
from edgekit.graph.nested import Outputs, attempt, constants, copied, invoke, unwrap
from edgekit.types import TorchModel

_CLOSE = 1e-6
"""Relative to the largest value: two runs of one float32 computation, threads included, are closer."""

_RUNS = 4
"""How often a module that draws random numbers is run before its outputs are believed not to depend on them."""


class UnrepeatableError(ExportError):
    """The same inputs give other outputs: no graph can be compared with that, however it was exported."""


@dataclass(frozen=True, kw_only=True)
class Behaviour:
    """``outputs`` on the example; whether forward ``writes`` into its inputs; numbers and texts among its results that
    a graph cannot give (``constants``, as ``place = value``)."""

    outputs: Outputs
    writes: bool = False
    constants: tuple[str, ...] = ()


def examine(model: TorchModel) -> Behaviour:
    """Run ``model`` on its example often enough to know.

    Raises:
        ExportError: forward raises.
        UnrepeatableError: it keeps state that its outputs depend on, or draws random numbers.
    """
    outputs = _run(model, model.example_inputs)  # what forward prepares on its first call is no state
    refuse_unrepeatable(model, model.example_inputs)
    given = copied(model.example_inputs)
    versions = {name: tensor._version for name, tensor in given.items()}
    with torch.no_grad():
        result = invoke(model.module, given)
    return Behaviour(
        outputs=outputs,
        writes=any(tensor._version != versions[name] for name, tensor in given.items()),
        constants=tuple(f"{place} = {value!r}" for place, value in constants(result)),
    )


def refuse_unrepeatable(model: TorchModel, inputs: Mapping[str, torch.Tensor]) -> None:
    """Raise :class:`UnrepeatableError`, naming state or randomness, where the same inputs give other outputs."""
    held, plain, generators = _held(model.module), _attributes(model.module), _generators()
    first = _run(model, inputs)
    draws = generators != _generators()
    changed = _unsettled(model, inputs, {path: place for path, place in held.items() if place.moved})
    differs = any(not equal(first, _again(model, inputs, changed)) for _ in range(_RUNS if draws else 1))
    after = _attributes(model.module)
    others = [path for path in plain if not _same(plain[path], after.get(path))]
    own = [path for path in others if isinstance(plain[path], _Drawn)]
    if differs and (draws or own):
        raise _random(model, own)
    matter = [path for path in changed if _matters(model, inputs, changed, path)]
    if matter or (differs and changed):
        raise _state(model, matter or changed)
    moved = [*(path for path, place in held.items() if place.moved), *others]
    if moved and not differs and _remembers(model, inputs, first):
        raise _state(model, moved)
    if differs:
        raise _state(model, moved) if moved else hidden(model)


def _run(model: TorchModel, inputs: Mapping[str, torch.Tensor]) -> Outputs:
    outputs = _answer(model, inputs)
    if isinstance(outputs, Exception):
        place, line = frame(model, outputs)
        where = (f" in module {place}" if place else "") + (f" ({line})" if line else "")
        raise ExportError(
            f"the module raised on its example inputs{where}: {type(outputs).__name__}: {first_line(outputs)}",
            hint="fix forward or the example inputs",
        ) from outputs
    return outputs


def _answer(model: TorchModel, inputs: Mapping[str, torch.Tensor]) -> Outputs | Exception:
    """What the module gives now: it may go on writing into what it gave."""
    outputs = attempt(model.module, inputs)
    return outputs if isinstance(outputs, Exception) else copied(outputs)


def _again(model: TorchModel, inputs: Mapping[str, torch.Tensor], changed: Collection[str]) -> Outputs:
    """A later call, which fails where state has run away."""
    outputs = _answer(model, inputs)
    if isinstance(outputs, Exception):
        raise (_state(model, changed) if changed else hidden(model)) from outputs
    return outputs


# --- state ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Place:
    """A tensor that a module holds: whose attribute it is, under which name, and how often it was written to."""

    owner: torch.nn.Module
    name: str
    tensor: torch.Tensor
    version: int

    @property
    def moved(self) -> bool:
        """Whether another tensor is there now, or the same was written to."""
        now = getattr(self.owner, self.name, None)
        return now is not self.tensor or _version(self.tensor) != self.version

    def put(self, value: torch.Tensor) -> None:
        """The same tensor object back in its place, with this value."""
        for table in _tables(self.owner):
            if self.name in table:
                table[self.name] = self.tensor
        self.tensor.copy_(value)


def _held(module: torch.nn.Module) -> dict[str, _Place]:
    """Every tensor that a module holds, by path: parameters, buffers and plain attributes."""
    found: dict[str, _Place] = {}
    for path, owner in unwrap(module)[0].named_modules():
        for table in _tables(owner):
            for name, tensor in table.items():
                if isinstance(tensor, torch.Tensor):
                    place = _Place(owner=owner, name=name, tensor=tensor, version=_version(tensor))
                    found[f"{path}.{name}" if path else name] = place
    return found


def _tables(owner: torch.nn.Module) -> tuple[dict[str, Any], ...]:
    return owner._parameters, owner._buffers, vars(owner)


@dataclass(frozen=True)
class _Drawn:
    """The state of a random generator."""

    state: bytes


def _attributes(module: torch.nn.Module) -> dict[str, object]:
    """What a module holds beside tensors of its own, by path: numbers, texts, containers of tensors, generators."""
    return {
        f"{path}.{name}" if path else name: _sketch(value, depth=4)
        for path, owner in unwrap(module)[0].named_modules()
        for name, value in vars(owner).items()
        if not name.startswith("_")
    }


def _sketch(value: object, depth: int) -> object:
    """Enough of a value to see whether it is another later; tensors by their identity, which is kept alive."""
    if isinstance(value, torch.Tensor):
        return (value, _version(value))
    if isinstance(value, torch.Generator):
        return _Drawn(value.get_state().numpy().tobytes())
    if isinstance(value, np.random.Generator):
        return _Drawn(pickle.dumps(value.bit_generator.state))
    if depth and isinstance(value, Mapping):
        return {str(k): _sketch(v, depth - 1) for k, v in value.items()}
    if depth and isinstance(value, list | tuple | deque):
        return [_sketch(v, depth - 1) for v in value]
    return value if isinstance(value, bool | int | float | str | bytes) else type(value)


def _same(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor) or isinstance(b, torch.Tensor):
        return a is b
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    return a == b


def _version(tensor: torch.Tensor) -> int:
    return 0 if tensor.is_inference() else int(tensor._version)


def _unsettled(
    model: TorchModel, inputs: Mapping[str, torch.Tensor], changed: dict[str, _Place]
) -> dict[str, _Place]:
    """Those of ``changed`` that one more call changes again: rows that were made shorter once stay so."""
    values = {path: place.tensor.detach().clone() for path, place in changed.items()}
    if changed:
        _answer(model, inputs)
    return {p: place for p, place in changed.items() if not _settled(place, values[p])}


def _remembers(model: TorchModel, inputs: Mapping[str, torch.Tensor], first: Outputs) -> bool:
    """Whether the outputs are others after a call with other inputs: what forward keeps may be what it was given, and
    then stays as it is while the inputs do."""
    between = _answer(model, {name: _other_inputs(tensor) for name, tensor in inputs.items()})
    again = _answer(model, inputs)
    return not isinstance(between, Exception) and (isinstance(again, Exception) or not equal(first, again))


def _other_inputs(tensor: torch.Tensor) -> torch.Tensor:
    """The same values in other places, and floats of another size."""
    rolled = tensor.reshape(-1).roll(1).reshape(tensor.shape)
    return rolled * 0.75 if tensor.is_floating_point() else rolled


def _settled(place: _Place, value: torch.Tensor) -> bool:
    now = getattr(place.owner, place.name, None)
    return now is place.tensor and torch.equal(place.tensor, value)


def _matters(
    model: TorchModel, inputs: Mapping[str, torch.Tensor], changed: Collection[str], path: str
) -> bool:
    """Whether the outputs depend on what forward left at ``path``: running statistics that nobody reads do not."""
    now = {p: place for p, place in _held(model.module).items() if p in changed}
    if path not in now:  # forward took it away
        return False
    values = {p: place.tensor.detach().clone() for p, place in now.items()}
    try:
        with torch.no_grad():
            plain = _answer(model, inputs)
            for p, place in now.items():
                place.put(_other(values[p]) if p == path else values[p])
            other = _answer(model, inputs)
            for p, place in now.items():
                place.put(values[p])
    except RuntimeError:  # a tensor that cannot be written to: a view of an expanded one, say
        return False
    if isinstance(plain, Exception) or isinstance(other, Exception):
        return True
    return not equal(plain, other)


def _other(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.dtype == torch.bool:
        return ~tensor
    if not tensor.is_floating_point():
        return tensor + 1
    spread = float(tensor.std()) if tensor.numel() > 1 else 0.0
    noise = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return tensor + (noise * (spread or 1.0)).to(tensor.dtype)


def equal(a: Outputs, b: Outputs) -> bool:
    """Whether two answers are one but for the last bits."""
    return a.keys() == b.keys() and all(_close(a[name], b[name]) for name in a)


def _close(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if not a.is_floating_point():
        return bool(torch.equal(a, b))
    largest = float(torch.nan_to_num(a).abs().max()) if a.numel() else 0.0
    return bool(torch.allclose(a, b, rtol=0.0, atol=_CLOSE * largest, equal_nan=True))


# --- randomness -------------------------------------------------------------------------------------------


def _generators() -> tuple[bytes, ...]:
    """The states of the global random generators: a module that draws from them moves them."""
    states = (torch.get_rng_state().numpy().tobytes(), np.random.get_state(), random.getstate())
    return tuple(pickle.dumps(state) for state in states)


def _is_random(operator: torch._ops.OperatorBase) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(operator, "tags", ())


# --- the errors -------------------------------------------------------------------------------------------


def _state(model: TorchModel, paths: Iterable[str]) -> UnrepeatableError:
    named = sorted(paths)
    names = ", ".join(named[:5]) + (" …" if len(named) > 5 else "")
    return UnrepeatableError(
        f"forward of {_name(model)} keeps state: it changes {names}, and its outputs depend on that; "
        "a graph computes its outputs from its inputs alone",
        hint="make the state an input and an output: forward(x, state) returns (y, state), and the app passes it on",
    )


def _random(model: TorchModel, own: Iterable[str]) -> UnrepeatableError:
    place, operator = caller(model, _is_random)
    generators = ", ".join(own)
    if generators:
        operator = operator or f"its generator {generators}"
    where = (f" by {operator}" if operator else "") + (f" in module {place}" if place else "")
    return UnrepeatableError(
        f"forward of {_name(model)} draws random numbers{where}: the same inputs give other outputs each time",
        hint="give dropout training=self.training (nn.Dropout does), or make the noise an input of forward",
    )


def hidden(model: TorchModel) -> UnrepeatableError:
    """The error for outputs that differ, nobody sees why."""
    return UnrepeatableError(
        f"forward of {_name(model)} gives other outputs for the same inputs each time: it keeps state in Python "
        "objects, reads the clock, or draws random numbers from a generator of its own",
        hint="let the outputs depend on the inputs alone; state and noise can be inputs",
    )


def _name(model: TorchModel) -> str:
    return type(unwrap(model.module)[0]).__name__
