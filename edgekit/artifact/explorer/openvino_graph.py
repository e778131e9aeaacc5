"""OpenVINO's IR: every operation but constants, which are the inputs of those that read them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from edgekit.artifact.explorer.graph import INPUT, OUTPUT, Edge, Graph, Names, Node, Tensor
from edgekit.artifact.inspect import openvino_file
from edgekit.artifact.inspect.openvino_file import Layer, Scope
from edgekit.core.foreign import translated

_ENDS = {"Parameter": INPUT, "Result": OUTPUT}
_CONSTANT = "Const"
_LONGEST = 200
_MOST_DEPTH = 16


def read(path: Path) -> tuple[Graph, ...]:
    """Raises :class:`SourceError` for a file that is damaged."""
    found = openvino_file.scopes(path)
    with translated(
        f"{path} is not an OpenVINO model", hint="build or copy it again, the .xml with its .bin"
    ):
        return tuple(
            Graph(id=f"body {n}" if n else "model", nodes=tuple(_nodes(scope)))
            for n, scope in enumerate(found)
        )


def _nodes(scope: Scope) -> Iterator[Node]:
    names = Names()
    layers = [layer for layer in scope.layers.values() if layer.op != _CONSTANT]
    ids = {id(layer): names.new(layer.name) for layer in layers}
    for layer in layers:
        yield Node(
            id=ids[id(layer)],
            op=_ENDS.get(layer.op, layer.op),
            names=tuple(dict.fromkeys(filter(None, (layer.name, *_tensor_names(layer))))),
            inputs=tuple(
                None if source is None else _read(layer, slot, source)
                for slot, source in enumerate(layer.sources)
            ),
            outputs=tuple(_made(layer, slot) for slot in range(len(layer.outputs))),
            edges=tuple(
                Edge(source=ids[id(source)], output=layer.source_outputs[slot], input=slot)
                for slot, source in enumerate(layer.sources)
                if source is not None and id(source) in ids
            ),
            macs=next(openvino_file.multiplied(layer), 0),
            attributes=dict(_options(layer)),
        )


def _tensor_names(layer: Layer) -> list[str]:
    return [name for names in layer.names for name in names.split(",")]


def _made(layer: Layer, slot: int) -> Tensor:
    names = layer.names[slot].split(",")[0] if slot < len(layer.names) else ""
    return Tensor(
        name=names or layer.name,
        dtype=openvino_file.numpy_name(layer.precisions[slot]) if slot < len(layer.precisions) else "",
        shape=_shape(layer.outputs[slot]),
    )


def _read(layer: Layer, slot: int, source: Layer) -> Tensor:
    constant = source.op == _CONSTANT
    dtype = source.dtype if constant else ""
    output = layer.source_outputs[slot]
    if not constant and output < len(source.precisions):
        dtype = openvino_file.numpy_name(source.precisions[output])
    return Tensor(
        name=openvino_file.own_name(source) or source.name,
        dtype=dtype,
        shape=_shape(layer.inputs[slot]) if slot < len(layer.inputs) else None,
        stored=_rounded(source),
        constant=constant,
    )


def _rounded(source: Layer) -> str:
    """The integers that a value was rounded to, or was stored as, in front of what reads it."""
    layer: Layer | None = source
    for _ in range(_MOST_DEPTH):
        if layer is None:
            return ""
        if layer.op == "FakeQuantize":
            return f"int{max(1, (int(layer.data.get('levels', 256)) - 1).bit_length())}"
        if layer.op == _CONSTANT:
            return layer.dtype
        if layer.op not in ("Convert", "Multiply", "Subtract", "Reshape", "Transpose") or not layer.sources:
            return ""
        layer = layer.sources[0]
    return ""


def _shape(dims: tuple[int, ...]) -> tuple[int | str, ...]:
    return tuple(d if d >= 0 else "?" for d in dims)


def _options(layer: Layer) -> Iterator[tuple[str, str]]:
    for name, text in layer.data.items():
        yield name, text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
