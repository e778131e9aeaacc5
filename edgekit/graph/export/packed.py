"""Packed sequences whose lengths are an input: kept padded, with their lengths beside them.

``pack_padded_sequence`` lays out rows by how many are that long, which is a shape made of values. Here a packed
sequence holds all steps, padded ones too, and in place of the counts the lengths; a recurrent layer runs over all of
them, and gives of each row what it gave at its end. Where a result is as long as the longest row, the comparison with
the module finds that it is not.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

_VF: Any = torch._VF
_CLOSED = 200.0
"""What closes a gate in float32, whatever else is added."""


class Sequences:
    """The packed sequences of one trace: the tensors of lengths that stand for counts, and how many steps they have."""

    def __init__(self) -> None:
        self._steps: dict[int, tuple[Tensor, int]] = {}

    def function(self, func: Any, args: Sequence[Any]) -> Callable[..., Any] | None:
        """What to call in place of ``func``; ``None``: itself."""
        if func == _VF._pack_padded_sequence:
            return self._pack
        ours = next((a for a in args[:2] if isinstance(a, Tensor) and id(a) in self._steps), None)
        if ours is None:
            return None
        if func == torch.Tensor.__getitem__:
            return lambda lengths, _: int(lengths.shape[0])
        if func == torch.Tensor.size:
            return lambda lengths, *_: self._steps[id(lengths)][1]
        if func == _VF._pad_packed_sequence:
            return _pad
        run = next((run for run in _LAYERS if func == getattr(_VF, run)), None)
        return None if run is None else functools.partial(_recurrent, run)

    def _pack(self, padded: Tensor, lengths: Tensor, batch_first: bool) -> tuple[Tensor, Tensor]:
        rows = padded.transpose(0, 1) if batch_first else padded
        stand_in = lengths.clone()
        self._steps[id(stand_in)] = (stand_in, int(rows.shape[0]))
        return rows.flatten(0, 1), stand_in


_LAYERS = ("lstm", "gru", "rnn_tanh", "rnn_relu")


def _pad(
    data: Tensor, lengths: Tensor, batch_first: bool, value: float, longest: int
) -> tuple[Tensor, Tensor]:
    rows = _by_time(data, lengths)
    inside = _inside(rows, lengths)
    padded = torch.where(inside, rows, value)
    if longest > rows.shape[0]:
        padded = torch.nn.functional.pad(padded, [0, 0, 0, 0, 0, longest - rows.shape[0]], value=value)
    return padded.transpose(0, 1) if batch_first else padded, lengths


def _by_time(data: Tensor, lengths: Tensor) -> Tensor:
    """``[time * batch, features]`` as ``[time, batch, features]``."""
    return data.reshape(-1, lengths.shape[0], data.shape[-1])


def _inside(rows: Tensor, lengths: Tensor) -> Tensor:
    """Which steps a row has, ``[time, batch, 1]``."""
    return (torch.arange(rows.shape[0])[:, None] < lengths).unsqueeze(-1)


def _recurrent(
    kind: str,
    data: Tensor,
    lengths: Tensor,
    state: Tensor | tuple[Tensor, Tensor],
    weights: Sequence[Tensor],
    biased: bool,
    layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
) -> tuple[Tensor, ...]:
    """Every layer and direction of its own; results as the function of packed data gives them."""
    del dropout, train
    rows = _by_time(data, lengths)
    states = state if isinstance(state, tuple) else (state,)
    directions = 2 if bidirectional else 1
    each = 4 if biased else 2
    last: list[tuple[Tensor, ...]] = []
    for layer in range(layers):
        outputs = []
        for direction in range(directions):
            place = layer * directions + direction
            own = list(weights[place * each : (place + 1) * each])
            start = tuple(s[place : place + 1] for s in states)
            steps, end = _one(kind, rows, lengths, start, own, biased, backwards=bool(direction))
            outputs.append(steps)
            last.append(end)
        rows = torch.cat(outputs, -1) if bidirectional else outputs[0]
    return rows.flatten(0, 1), *(torch.stack(ends) for ends in zip(*last, strict=True))


def _one(
    kind: str,
    rows: Tensor,
    lengths: Tensor,
    start: tuple[Tensor, ...],
    weights: list[Tensor],
    biased: bool,
    *,
    backwards: bool,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """One layer in one direction: its outputs ``[time, batch, features]``, and the states at each row's end."""
    steps = torch.arange(rows.shape[0])[:, None]
    turned = torch.where(steps < lengths, lengths - 1 - steps, steps).unsqueeze(-1)
    x = rows.gather(0, turned.expand(rows.shape)) if backwards else rows
    outputs = _run(kind, x, start, weights, biased)[0]
    end = (lengths - 1).clamp(min=0).reshape(1, -1, 1).expand(1, *outputs.shape[1:])
    ends = [outputs.gather(0, end)[0]]
    if kind == "lstm":
        ends.append(_cells(x, lengths, start, weights, biased))
    if backwards:
        outputs = outputs.gather(0, turned.expand(outputs.shape))
    return outputs, tuple(ends)


def _run(
    kind: str, x: Tensor, start: tuple[Tensor, ...], weights: list[Tensor], biased: bool
) -> tuple[Tensor, ...]:
    state = start if kind == "lstm" else start[0]
    result: tuple[Tensor, ...] = getattr(torch, kind)(x, state, weights, biased, 1, 0.0, False, False, False)
    return result


def _cells(
    x: Tensor, lengths: Tensor, start: tuple[Tensor, ...], weights: list[Tensor], biased: bool
) -> Tensor:
    """An LSTM's cells at each row's end: behind it the input gate is closed and the forget gate open, by one feature
    more."""
    outside = torch.where(_inside(x, lengths), 0.0, 1.0).to(x.dtype)
    size = weights[0].shape[0] // 4
    gates = torch.cat([torch.full((size, 1), v) for v in (-_CLOSED, _CLOSED, 0.0, 0.0)]).to(x.dtype)
    own = [torch.cat([weights[0], gates], 1), *weights[1:]]
    return _run("lstm", torch.cat([x, outside], -1), start, own, biased)[2][0]
