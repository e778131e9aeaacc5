"""``model.ort``: ONNX Runtime's flatbuffer format, written and read back by the runtime itself.

The runtime writes the graph the same way every time, but the table of kernel types before it in the order
of its own hash maps' shared strings: two writes of one model differ. The graph is the end of the file and
points nowhere else, so it is kept byte for byte, and the table is written again in a fixed way (schema:
``onnxruntime/core/flatbuffers/schema/ort.fbs``).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import flatbuffers
from flatbuffers.table import Table

from edgekit.core.foreign import translated
from edgekit.errors import BackendError

_IDENTIFIER = b"ORTM"
_ALIGNMENT = 16

# Field numbers of the schema's tables.
_ORT_VERSION, _MODEL, _RESOLVER = 0, 1, 3
_KEY, _ENTRIES = 0, 1
_ARG_TYPE, _INDEX = 0, 1

_Arg = tuple[int, int]
_Resolver = Sequence[tuple[bytes, Sequence[tuple[bytes, Sequence[_Arg]]]]]


def write_ort(source: Path, path: Path) -> str:
    """Convert ``source`` and load the result; returns the file's name.

    Extended optimizations only: those above are laid out for this machine's CPU, and the file is for others.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime as ort

    part = path.with_name(f"{path.name}.part.ort")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(part)
    options.add_session_config_entry("session.save_model_format", "ORT")
    failure = f"ONNX Runtime cannot write {path.name}"
    try:
        # The runtime's exceptions share no base class but Exception.
        with translated(failure, hint="build without --set ort_format=true", kind=BackendError):
            ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
            part.write_bytes(canonical(part.read_bytes()))
            check = ort.SessionOptions()
            check.log_severity_level = 3
            ort.InferenceSession(part, check, providers=["CPUExecutionProvider"])
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path.name


def canonical(data: bytes) -> bytes:
    """The same model with the kernel table in a fixed layout. Raises ``ValueError`` for another format."""
    if data[4:8] != _IDENTIFIER:
        raise ValueError("not an ORT format model")
    session = Table(data, int.from_bytes(data[:4], "little"))
    model_at = _target(session, _MODEL)
    version = bytes(session.String(_field(session, _ORT_VERSION)))
    resolver = _read_resolver(Table(data, _target(session, _RESOLVER)))
    begin = min(model_at, _vtable_at(data, model_at))

    graph_part = data[begin:]
    builder = flatbuffers.Builder(len(graph_part) + (1 << 16))
    builder.head = len(builder.Bytes) - len(graph_part)
    builder.Bytes[builder.head :] = graph_part
    builder.minalign = _ALIGNMENT
    table = _write_resolver(builder, resolver)
    text = builder.CreateString(version)
    builder.StartObject(4)
    builder.PrependUOffsetTRelativeSlot(_ORT_VERSION, text, 0)
    builder.PrependUOffsetTRelativeSlot(_MODEL, len(data) - model_at, 0)
    builder.PrependUOffsetTRelativeSlot(_RESOLVER, table, 0)
    builder.Finish(builder.EndObject(), file_identifier=_IDENTIFIER)
    return bytes(builder.Output())


def _read_resolver(resolver: Table) -> _Resolver:
    """Operator → type parameter → which arguments have that type."""

    def args(table: Table) -> Iterator[_Arg]:
        for entry in _tables(table, _ENTRIES):
            yield _number(entry, _ARG_TYPE, 1), _number(entry, _INDEX, 4)

    def parameters(table: Table) -> Iterator[tuple[bytes, Sequence[_Arg]]]:
        for entry in _tables(table, _ENTRIES):
            yield bytes(entry.String(_field(entry, _KEY))), tuple(args(entry))

    operators = [(bytes(t.String(_field(t, _KEY))), tuple(parameters(t))) for t in _tables(resolver, 0)]
    return sorted(operators)  # a vector with a key: readers search it in order


def _write_resolver(builder: flatbuffers.Builder, resolver: _Resolver) -> int:
    def arg(item: _Arg) -> int:
        builder.StartObject(2)
        builder.PrependInt8Slot(_ARG_TYPE, item[0], 0)
        builder.PrependUint32Slot(_INDEX, item[1], 0)
        return int(builder.EndObject())

    def keyed(name: bytes, entries: int) -> int:
        key = builder.CreateString(name)
        builder.StartObject(2)
        builder.PrependUOffsetTRelativeSlot(_KEY, key, 0)
        builder.PrependUOffsetTRelativeSlot(_ENTRIES, entries, 0)
        return int(builder.EndObject())

    operators = [
        keyed(name, _vector(builder, [keyed(n, _vector(builder, list(map(arg, a)))) for n, a in parameters]))
        for name, parameters in resolver
    ]
    entries = _vector(builder, operators)
    builder.StartObject(1)
    builder.PrependUOffsetTRelativeSlot(0, entries, 0)
    return int(builder.EndObject())


def _vector(builder: flatbuffers.Builder, offsets: Sequence[int]) -> int:
    builder.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    return int(builder.EndVector())


def _field(table: Table, number: int) -> int:
    offset = table.Offset(4 + 2 * number)
    if not offset:
        raise ValueError(f"ORT format: field {number} is missing")
    return int(table.Pos + offset)


def _target(table: Table, number: int) -> int:
    return int(table.Indirect(_field(table, number)))


def _tables(table: Table, number: int) -> Iterator[Table]:
    offset = table.Offset(4 + 2 * number)
    for index in range(table.VectorLen(offset) if offset else 0):
        yield Table(table.Bytes, table.Indirect(table.Vector(offset) + 4 * index))


def _number(table: Table, number: int, size: int) -> int:
    offset = table.Offset(4 + 2 * number)
    at = table.Pos + offset
    return int.from_bytes(table.Bytes[at : at + size], "little") if offset else 0


def _vtable_at(data: bytes, table: int) -> int:
    return table - int.from_bytes(data[table : table + 4], "little", signed=True)
