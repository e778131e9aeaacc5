"""Moves of complex tensors: what the exporter does to their two parts when they are apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Node

from edgekit.graph.export.decompositions.table import decomposes

aten = torch.ops.aten


def of_complex(node: Node) -> bool:
    """Whether the node's first argument is complex."""
    value = node.args[0].meta.get("val") if node.args and isinstance(node.args[0], Node) else None
    return isinstance(value, torch.Tensor) and value.is_complex()


def _by_parts(overload: Any) -> Callable[..., Any]:
    def moved(z: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """The real and the imaginary part, each by itself."""
        if not z.is_complex():
            return NotImplemented
        real, imaginary = torch.view_as_real(z).unbind(-1)
        return torch.complex(overload(real, *args, **kwargs), overload(imaginary, *args, **kwargs))

    return moved


for _overload in (
    aten.constant_pad_nd.default,
    aten.flip.default,
    aten.roll.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.squeeze.default,
    aten.unsqueeze.default,
):
    decomposes(_overload, where=of_complex)(_by_parts(_overload))
