"""How many bytes a model's files have on a device and as a store sends them, and about how many they will have coded,
in a hundredth of the time that coding takes.

Stores send packages whose members are deflated (RFC 1951, as in every APK and IPA); the level is the highest. Coded:
the order-0 entropy of each tensor's values where they are few, else of its bytes by place; a third of the rest.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Iterable
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


_PIECE = 1 << 20


def on_device(files: Iterable[Path]) -> int:
    """Bytes of the files as they lie there."""
    return sum(f.stat().st_size for f in files)


def download(files: Iterable[Path]) -> int:
    """Bytes of the files, each deflated: what a package of them adds to a download."""
    total = 0
    for path in files:
        with path.open("rb") as file:
            total += _deflated(iter(functools.partial(file.read, _PIECE), b""))
    return total


def download_weights(module: torch.nn.Module) -> int:
    """About what a float target's files add to a download, from the weights alone."""
    return _deflated(t.detach().cpu().contiguous().numpy().tobytes() for t in module.state_dict().values())


def _deflated(pieces: Iterable[bytes]) -> int:
    coder = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return sum(len(coder.compress(piece)) for piece in pieces) + len(coder.flush())


def weights_on_device(module: torch.nn.Module) -> int:
    """About the bytes of a float target's files, from the weights alone."""
    return sum(t.numel() * t.element_size() for t in module.state_dict().values())


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
