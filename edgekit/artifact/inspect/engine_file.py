"""``.engine``: machine code for one GPU, which nothing here reads but its first 32 bytes and the record beside it.

The header: a mark of four letters, the size of what follows at byte 16 (TensorRT for RTX, measured with 1.7), and the
version that wrote it, a byte each for its four numbers, from byte 24 on (NVIDIA/TensorRT issue 3073).
"""

from __future__ import annotations

import struct
from pathlib import Path

from edgekit.artifact.inspect.inspection import Inspection
from edgekit.backends.nvidia import engine
from edgekit.errors import EngineMismatchError, SourceError
from edgekit.types import Json, OnnxModel, TensorSpec, sha256_file

MARKS = {b"ftrt": "TensorRT", b"ptrt": "TensorRT", b"vtrt": "TensorRT for RTX", b"vgrt": "TensorRT for RTX"}
_HEAD = 32
_GRAPH = "model.onnx"
_OPAQUE = "an engine is opaque: operators and weights are in the graph that it was built from"


def read(path: Path) -> Inspection:
    """Raises :class:`SourceError` for what is no engine or was cut short, and :class:`EngineMismatchError` where it is
    not the one of which the record beside it speaks."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(_HEAD)
    title = MARKS.get(head[:4])
    if title is None:
        raise SourceError(
            f"{path} is no TensorRT engine: it does not begin as one", hint="build or copy it again"
        )
    facts: dict[str, Json] = {
        "runtime": title,
        "version": _version(path, head, size),
        "sha256": sha256_file(path),
    }
    notes: tuple[str, ...] = (_OPAQUE,)
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    if path.with_name(engine.RECORD).is_file():
        key = engine.read_key(path)
        facts |= {
            "gpu": key.gpu,
            "compute_capabilities": list(key.compute_capabilities),
            "driver": key.driver,
            "graph_sha256": key.graph_sha256,
            "flags": dict(key.flags),
        }
        if key.version != facts["version"]:
            raise EngineMismatchError(
                f"{engine.RECORD} says that TensorRT {key.version} wrote {path.name}, and the file {facts['version']}",
                differences=("version",),
            )
    else:
        notes += (
            f"there is no {engine.RECORD} beside it: nothing says for which GPU and driver it was built",
        )
    return Inspection(
        path=path,
        format="TensorRT engine",
        size=size,
        inputs=inputs,
        outputs=outputs,
        operators={},
        weights={},
        facts=facts,
        notes=notes,
    )


def _graph(path: Path, sha256: str) -> OnnxModel | None:
    """The graph that the engine was built from, where it lies beside it."""
    from edgekit.graph import io

    graph = path.with_name(_GRAPH)
    try:
        return io.describe(graph) if graph.is_file() and io.digest(graph) == sha256 else None
    except SourceError:  # damaged: it is not the one
        return None


def _version(path: Path, head: bytes, size: int) -> str:
    if len(head) < _HEAD:
        raise SourceError(f"{path} is cut short: it has {size} bytes", hint="build or copy it again")
    (stated,) = struct.unpack_from("<Q", head, 16)
    if head[:4] == b"vtrt" and stated != size:
        raise SourceError(
            f"{path} is damaged: its header states {stated:,} bytes, and it has {size:,}",
            hint="build or copy it again",
        )
    return ".".join(str(part) for part in head[24:28])
