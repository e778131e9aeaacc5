"""Sizes in a model's ``config.json`` compared with the weights beside it: what the weights cannot fill is not built.

A class is built layer by layer before its weights are read. One digit more in a config is hours and terabytes.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from edgekit.errors import SourceError
from edgekit.types import Json

_LAYERS = re.compile(r"(num_|n_)?(\w+_)?(layers?|blocks)|n_layer|depth")
_SIZES = re.compile(r"(\w+_)?(size|dim|heads|labels|channels)|d_\w+|n_(embd|head|inner)")
_MOST_PIXELS = 1 << 13
_MOST_HEADER = 100 << 20
_DAMAGED = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    RecursionError,
    struct.error,
)
_HINT = "download the model again, from somebody whom you trust"


def refuse_missing(what: str, found: Mapping[str, Iterable[object]]) -> None:
    """Raise :class:`SourceError` where weights of the network are not in its files: transformers makes random numbers
    up for them. ``found`` is its ``loading_info``."""
    missing = sorted(map(str, found.get("missing_keys", ())))
    if missing:
        names = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise SourceError(
            f"{what}: {len(missing)} of its weights are missing: {names}",
            hint="download it completely, or name in config.json an architecture that these files are of",
        )


def refuse_hollow(folder: Path, config: Mapping[str, Json]) -> None:
    """Raise :class:`SourceError` where a model of this config has more layers, or wider ones, than its safetensors
    files have tensors and values; also where they cannot be read."""
    tensors = values = 0
    for file in sorted(folder.glob("*.safetensors")):
        for shape in _shapes(file):
            tensors, values = tensors + 1, values + math.prod(shape)
    if not tensors:  # pickles, with trust: nothing is known of them
        return
    for name, number in _numbers(config):
        most = tensors if _LAYERS.fullmatch(name) else values if _SIZES.fullmatch(name) else None
        if name in ("image_size", "num_channels"):  # of the example, which has no weights
            most = _MOST_PIXELS
        if most is not None and number > most:
            raise SourceError(
                f"{folder / 'config.json'}: {name} is {number:,}, and the weights are {tensors:,} tensors of "
                f"{values:,} values",
                hint=_HINT,
            )


def _shapes(file: Path) -> Iterator[list[int]]:
    try:
        with file.open("rb") as stream:
            length = struct.unpack("<Q", stream.read(8))[0]
            if length > min(_MOST_HEADER, file.stat().st_size):
                raise ValueError("its header is longer than the file")
            header = json.loads(stream.read(length))
        for name, row in header.items():
            if name != "__metadata__":
                yield [int(d) for d in row["shape"]]
    except _DAMAGED as error:
        raise SourceError(f"{file} is damaged: {error}", hint=_HINT) from error


def _numbers(value: Json) -> Iterator[tuple[str, int]]:
    """Every whole number in a config with its name, those of nested configs too."""
    todo: list[tuple[str, Json]] = [("", value)]
    while todo:
        name, item = todo.pop()
        if isinstance(item, Mapping):
            todo += [(str(key), inner) for key, inner in item.items()]
        elif isinstance(item, list):
            todo += [(name, inner) for inner in item]
        elif isinstance(item, int):
            yield name, item
