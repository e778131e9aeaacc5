"""LSTMs whose hidden state is a projection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from edgekit.graph.export.decompositions.table import decomposes, static

aten = torch.ops.aten


def _projects(node: Node) -> bool:
    hidden, cell = (state.meta["val"] for state in node.args[1])  # type: ignore[union-attr]
    return bool(hidden.shape[-1] != cell.shape[-1])


@decomposes(aten.lstm.input, where=_projects)
def lstm(
    x: Tensor,
    hx: Sequence[Tensor],
    params: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> Any:
    """Step by step: ONNX's LSTM has no projection (Sak et al., 2014)."""
    del dropout, train
    x = x.transpose(0, 1) if batch_first else x
    if not static(x.shape[0]):
        return NotImplemented
    each = (4 if has_biases else 2) + (hx[0].shape[-1] != hx[1].shape[-1])
    directions = 2 if bidirectional else 1
    hidden, cells = [], []
    for layer in range(num_layers):
        outputs = []
        for direction in range(directions):
            place = layer * directions + direction
            weights = params[place * each : (place + 1) * each]
            steps, h, c = _layer(x, (hx[0][place], hx[1][place]), weights, has_biases, bool(direction))
            outputs.append(steps)
            hidden.append(h)
            cells.append(c)
        x = torch.cat(outputs, -1) if bidirectional else outputs[0]
    return x.transpose(0, 1) if batch_first else x, torch.stack(hidden), torch.stack(cells)


def _layer(
    x: Tensor, state: tuple[Tensor, Tensor], weights: Sequence[Tensor], biased: bool, backwards: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """One direction of one layer over ``x [time, batch, features]``."""
    h, c = state
    projection = weights[-1] if h.shape[-1] != c.shape[-1] else None
    bias = weights[2] + weights[3] if biased else None
    incoming = torch.nn.functional.linear(x, weights[0], bias)
    outputs = []
    times = range(x.shape[0])
    for t in reversed(times) if backwards else times:
        gates = incoming[t] + torch.nn.functional.linear(h, weights[1])
        i, f, g, o = gates.chunk(4, -1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        if projection is not None:
            h = torch.nn.functional.linear(h, projection)
        outputs.append(h)
    return torch.stack(outputs[::-1] if backwards else outputs), h, c
