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


@decomposes(aten.exp.default, where=of_complex)
def exponential(z: torch.Tensor) -> Any:
    """A turn of a length."""
    if not z.is_complex():
        return NotImplemented
    real, imaginary = torch.view_as_real(z).unbind(-1)
    size = real.exp()
    return torch.complex(size * imaginary.cos(), size * imaginary.sin())


@decomposes(aten.log.default, where=of_complex)
def logarithm(z: torch.Tensor) -> Any:
    """The length's logarithm and the phase."""
    if not z.is_complex():
        return NotImplemented
    return torch.complex(z.abs().log(), z.angle())


def _by_complex(node: Node) -> bool:
    return len(node.args) > 1 and isinstance(node.args[1], complex)


@decomposes(aten.mul.Tensor, aten.mul.Scalar, where=_by_complex)
def times(z: torch.Tensor, factor: Any) -> Any:
    """By a complex number."""
    if not isinstance(factor, complex):
        return NotImplemented
    if not z.is_complex():
        return torch.complex(z * factor.real, z * factor.imag)
    real, imaginary = torch.view_as_real(z).unbind(-1)
    return torch.complex(
        real * factor.real - imaginary * factor.imag, real * factor.imag + imaginary * factor.real
    )
