"""About how many bytes a model's coded files will have, in a hundredth of the time that coding takes.

The order-0 entropy of each tensor's values where they are few, else of its bytes by place; a third of the rest.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from edgekit.graph import io
from edgekit.types import OnnxModel

if TYPE_CHECKING:
    from edgekit.types import Array

_FEW = 4096
"""So many distinct values are coded as indices into a table; of more, the bytes by place."""


def estimate(files: list[Path], model: OnnxModel) -> int:
    """The size of a target's ``files``, whose weights are those of the graph ``model``."""
    whole = sum(f.stat().st_size for f in files)
    stored = coded = 0.0
    for value in io.load(model.path).graph.initializers.values():
        if value.const_value is not None:
            array = value.const_value.numpy()
            stored += array.nbytes
            coded += entropy(array)
    return round(coded + max(0.0, whole - stored) / 3)


def estimate_weights(module: torch.nn.Module) -> int:
    """The size of a float target's files, from the weights alone."""
    return round(sum(entropy(t.detach().cpu().numpy()) for t in module.state_dict().values()))


def entropy(array: Array) -> float:
    """Bytes of an array at its order-0 entropy; very small ones as they are."""
    if array.nbytes < 64 or array.dtype.hasobject or array.dtype.itemsize not in (1, 2, 4, 8):
        return float(array.nbytes)
    flat = np.ascontiguousarray(array).reshape(-1).view(f"u{array.dtype.itemsize}")
    values, counts = np.unique(flat, return_counts=True)
    if len(values) <= min(_FEW, len(flat) // 4):
        return _bytes(counts) + len(values) * array.dtype.itemsize
    # As the coder does: which values are zero, then the bytes of the others by their place in the number.
    zero = flat == 0
    mask = _bytes(np.array([int(zero.sum()), int((~zero).sum())]))
    planes = flat[~zero].view(np.uint8).reshape(-1, array.dtype.itemsize)
    return mask + sum(_bytes(np.bincount(plane, minlength=256)) for plane in planes.T)


def _bytes(counts: Array) -> float:
    some = counts[counts > 0].astype(np.float64)
    return float((some * np.log2(some.sum() / some)).sum() / 8)
