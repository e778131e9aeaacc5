"""What is in a model file: inputs, outputs, operators, weights and their quantization. Nothing of it is executed.

In comes a file of anybody's; out goes an :class:`Inspection`, or a typed error where it is damaged. Each format has a
module that reads it, without its runtime wherever that can be.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

from edgekit.artifact.inspect.inspection import Inspection as Inspection
from edgekit.artifact.inspect.inspection import Reach as Reach
from edgekit.artifact.inspect.inspection import Scales as Scales
from edgekit.artifact.inspect.inspection import StoredWeight as StoredWeight
from edgekit.artifact.inspect.inspection import Takes as Takes
from edgekit.errors import SourceError, UsageError

_READERS = {
    ".onnx": "onnx_file",
    ".tflite": "tflite_file",
    ".xml": "openvino_file",
    ".engine": "engine_file",
    ".pt2": "exported_file",
    ".gguf": "gguf_file",
    ".ekz": "packed_file",
}
_MARKS = {
    b"TFL3": (4, "tflite_file"),
    b"GGUF": (0, "gguf_file"),
    b"EKZ\x01": (0, "packed_file"),
    b"vtrt": (0, "engine_file"),
    b"ftrt": (0, "engine_file"),
}
"""First bytes, where they are, and what reads such a file whatever it is called."""

KINDS = tuple(_READERS)
"""Ends of the names of files that can be read."""
READ = f"edgekit inspect reads artifacts and {', '.join(KINDS)}"


def inspect_file(path: Path) -> Inspection:
    """Read a model file of one of :data:`KINDS`.

    Raises:
        SourceError: it is of no such kind, or damaged (:class:`ContainerError` for a ``.ekz``).
        UntrustedSourceError: its weights are said to be outside its folder.
        MissingExtraError: the package that knows the format is not installed.
        EngineMismatchError: an engine is not the one of which the record beside it speaks.
    """
    try:
        if not path.is_file():
            if path.exists():
                raise SourceError(
                    f"{path} is a folder, a pipe or a device, not a file", hint="name the model's file"
                )
            raise SourceError(
                f"there is no file {path}", hint=f"name an artifact's directory or a model: {READ}"
            )
        with path.open("rb") as file:
            head = file.read(8)
        name = _marked(head) or _READERS.get(path.suffix.lower())
        if name is None:
            raise SourceError(f"{path} is no model that can be looked into", hint=READ)
        found = _reader(name)(path)
    except OSError as error:  # a name that no file can have, a disk that fails
        raise UsageError(
            f"{path} cannot be read: {error.strerror or error}", hint="check the path"
        ) from error
    _refuse_impossible(found)
    return found


_MOST = 1 << 62
"""Of anything that is counted: what is larger no file states in earnest, and no reader of JSON takes."""


def _refuse_impossible(found: Inspection) -> None:
    counts = [found.size, found.parameters or 0, found.macs or 0, *found.weights.values()]
    for weight in found.layers:
        counts += [weight.count, weight.size, weight.block, *weight.shape]
    counts += [d for spec in (*found.inputs, *found.outputs) for d in spec.shape if isinstance(d, int)]
    wrong = [number for number in counts if not 0 <= number <= _MOST]
    if wrong:
        raise SourceError(
            f"{found.path} states sizes that no model has ({min(wrong[0], 10**30):,})",
            hint="build or copy it again",
        )


def _marked(head: bytes) -> str | None:
    for mark, (at, name) in _MARKS.items():
        if head[at : at + len(mark)] == mark:
            return name
    return None


def _reader(name: str) -> Callable[[Path], Inspection]:
    read: Callable[[Path], Inspection] = importlib.import_module(f"{__name__}.{name}").read
    return read
