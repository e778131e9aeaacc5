"""A TFLite file, its tensors read as extra outputs and replaced by extra inputs, in the flatbuffer itself.

As in :mod:`edgekit.diff.onnx_form`: the producer of a replaced tensor writes a copy of it, and the tensor
becomes an input of the graph. LiteRT runs the result with its own kernels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.diff.forms import INPUT, Layer
from edgekit.diff.onnx_form import quantized
from edgekit.errors import BackendError, MissingExtraError, SourceError

if TYPE_CHECKING:
    from edgekit.artifact.manifest import Artifact
    from edgekit.types import Array

_STORED = {3: 8, 7: 16, 9: 8}
"""TensorType UINT8, INT16, INT8: their bits."""
_FLOATS = (0, 1)
_QUANTIZE = 114


def form(artifact: Artifact) -> TfliteForm:
    """LiteRT's. Raises :class:`SourceError` for a damaged file."""
    path = artifact.model
    return TfliteForm(f"LiteRT ({path.name})", path, moved=artifact.manifest.channels_moved)


class TfliteForm:
    """See :class:`edgekit.diff.forms.Form`. Inputs and outputs go by the names of the signature.

    ``moved`` names the inputs and outputs whose channels are last here and axis 1 in the source.
    """

    float_bits = 24

    def __init__(self, title: str, path: Path, *, moved: Iterable[str] = ()) -> None:
        self.title, self._path, self._moved = title, path, frozenset(moved)
        self._schema = _schema()
        self._data = path.read_bytes()
        model = self._model()
        self._graph = model.subgraphs[0]
        self._codes = [max(c.builtinCode, c.deprecatedBuiltinCode) for c in model.operatorCodes]
        self._tensors = self._graph.tensors
        self._names = _unique([(t.name or b"").decode(errors="replace") for t in self._tensors])
        self._index = {name: i for i, name in enumerate(self._names)}
        self._signature = self._signatures(model)
        self._interpreters: dict[tuple[str, ...], Any] = {}

    @cached_property
    def outputs(self) -> tuple[str, ...]:
        """Tensor names of the outputs."""
        return tuple(self._names[i] for i in self._graph.outputs)

    @cached_property
    def weight_bits(self) -> int:
        """Width of the coarsest constant matrix."""
        widths = {**_STORED, 17: 4, 1: 16}
        produced = {o for op in self._graph.operators for o in op.outputs} | set(self._graph.inputs)
        found = [
            widths.get(t.type, 32)
            for i, t in enumerate(self._tensors)
            if i not in produced and t.shape is not None and len(t.shape) >= 2 and t.type != 2
        ]
        return min(found, default=32)

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """Every tensor of real values that depends on the inputs."""
        live = set(self._graph.inputs)
        found = [
            Layer(tensor=self._names[i], node=self._names[i], op=INPUT, module="", names=(self._names[i],))
            for i in self._graph.inputs
        ]
        for op in self._graph.operators:
            if not any(i in live for i in op.inputs):
                continue
            live.update(op.outputs)
            found += [self._layer(op, i) for i in op.outputs if self._readable(i)]
        return tuple(found)

    def free(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """One inference with every tensor as an output."""
        tensors = [layer.tensor for layer in self.layers if layer.op != INPUT]
        return dict(inputs) | self._run(inputs, {}, tensors)

    def forced(self, inputs: Mapping[str, Array], values: Mapping[str, Array]) -> dict[str, Array]:
        """One inference with the tensors of ``values`` replaced."""
        return self._run(inputs, values, [])

    def received(self, values: Mapping[str, Array]) -> dict[str, Array]:
        """Rounded where the tensor is stored as integers."""
        found = {}
        for name, value in values.items():
            index = self._index[name]
            found[name] = self._real(index, self._stored(index, value)).reshape(value.shape)
        return found

    # --- reading the file -------------------------------------------------------------------------------

    def _model(self) -> Any:
        try:
            root = self._schema.Model.GetRootAs(self._data, 0)
            return self._schema.ModelT.InitFromObj(root)
        except Exception as error:
            raise SourceError(f"{self._path} is damaged: {error}", hint="build or copy it again") from error

    def _signatures(self, model: Any) -> dict[str, int]:
        if not model.signatureDefs:
            return {self._names[i]: i for i in self._graph.inputs}
        maps = model.signatureDefs[0].inputs or []
        return {m.name.decode() if isinstance(m.name, bytes) else m.name: m.tensorIndex for m in maps}

    def _readable(self, index: int) -> bool:
        tensor = self._tensors[index]
        return tensor.type in _FLOATS or (tensor.type in _STORED and self._affine(index) is not None)

    def _affine(self, index: int) -> tuple[float, int] | None:
        """Scale and zero point of a tensor with one of each."""
        q = self._tensors[index].quantization
        if q is None or q.scale is None or len(q.scale) != 1:
            return None
        zero = q.zeroPoint[0] if q.zeroPoint is not None and len(q.zeroPoint) else 0
        return float(q.scale[0]), int(zero)

    def _layer(self, op: Any, index: int) -> Layer:
        name = self._names[index]
        code = self._code(op)
        parts = name.split("/")
        tails = ["/".join(parts[i:]) for i in range(len(parts))]
        stems = [s.removesuffix("_QuantizeLinear").removesuffix("_DequantizeLinear") for s in tails]
        module = parts[0] if len(parts) > 1 else ""
        return Layer(
            tensor=name,
            node=name,
            op=code,
            module=module,
            names=tuple(dict.fromkeys((*tails, *stems))),
            bits=_STORED.get(self._tensors[index].type, 0),
            owner=name,
        )

    def _code(self, op: Any) -> str:
        wanted = self._codes[op.opcodeIndex]
        names = vars(self._schema.BuiltinOperator).items()
        return next((k for k, v in names if v == wanted and not k.startswith("_")), "CUSTOM")

    # --- running it -------------------------------------------------------------------------------------

    def _run(
        self, inputs: Mapping[str, Array], values: Mapping[str, Array], also: Iterable[str]
    ) -> dict[str, Array]:
        also = tuple(dict.fromkeys((*also, *self.outputs)))
        interpreter, sources, results = self._interpreter(tuple(sorted(values)), also)
        by_index = {i: self._fed(name, i, inputs) for name, i in self._signature.items()}
        by_index |= {self._index[n]: self._stored(self._index[n], v) for n, v in values.items()}
        for index, detail in zip(sources, interpreter.get_input_details(), strict=True):
            interpreter.set_tensor(detail["index"], by_index[index])
        interpreter.invoke()
        found = {}
        for index, detail in zip(results, interpreter.get_output_details(), strict=True):
            found[self._names[index]] = self._real(index, interpreter.get_tensor(detail["index"]))
        return {n: np.moveaxis(v, -1, 1) if n in self._moved else v for n, v in found.items()}

    def _fed(self, name: str, index: int, inputs: Mapping[str, Array]) -> Array:
        if name not in inputs:
            raise SourceError(
                f"{self._path.name} wants an input {name!r}, the samples have: {', '.join(inputs)}",
                hint="compare models with inputs of the same names",
            )
        value = np.asarray(inputs[name])
        value = np.moveaxis(value, 1, -1) if name in self._moved else value
        return self._stored(index, value)

    def _stored(self, index: int, value: Array) -> Array:
        tensor, affine = self._tensors[index], self._affine(index)
        shape = tuple(int(d) for d in tensor.shape) if tensor.shape is not None else ()
        if tensor.type in _STORED and affine is not None and value.dtype.kind == "f":
            dtype = np.dtype({3: np.uint8, 7: np.int16, 9: np.int8}[tensor.type])
            return quantized(value, *affine, dtype).reshape(shape)
        kinds: dict[int, Any] = {0: np.float32, 1: np.float16, 2: np.int32, 4: np.int64, 6: np.bool_}
        return np.ascontiguousarray(value, kinds.get(tensor.type, value.dtype)).reshape(shape)

    def _real(self, index: int, value: Array) -> Array:
        affine = self._affine(index)
        if affine is not None and value.dtype.kind in "iu":
            return ((value.astype(np.float32) - affine[1]) * np.float32(affine[0])).astype(np.float32)
        return value.astype(np.float32) if value.dtype.kind == "f" else value

    def _interpreter(self, cut: tuple[str, ...], also: tuple[str, ...]) -> Any:
        key = (*cut, "|", *also)
        if key not in self._interpreters:
            self._interpreters.clear()
            self._interpreters[key] = self._prepared(
                [self._index[n] for n in cut], [self._index[n] for n in also]
            )
        return self._interpreters[key]

    def _prepared(self, cut: list[int], also: list[int]) -> tuple[Any, list[int], list[int]]:
        """An interpreter, the tensors of its inputs, and those of its outputs, in order."""
        from ai_edge_litert.interpreter import Interpreter

        data, sources, results = self._cut(cut, also)
        try:
            interpreter = Interpreter(model_content=data, num_threads=1)
            interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            raise BackendError(
                f"LiteRT does not run {self._path} layer by layer: {error}",
                hint="compare another form of the model; edgekit verify runs the file as it is",
            ) from error
        return interpreter, sources, results

    def _cut(self, cut: list[int], also: list[int]) -> tuple[bytes, list[int], list[int]]:
        import copy

        import flatbuffers

        model = self._model()
        graph = model.subgraphs[0]
        own = {}
        for index in cut:
            twin = copy.copy(graph.tensors[index])
            twin.name = (twin.name or b"") + b"::own"
            own[index] = len(graph.tensors)
            graph.tensors.append(twin)
        for op in graph.operators:
            op.outputs = [own.get(int(i), int(i)) for i in op.outputs]
        results = list(dict.fromkeys([*cut, *also]))
        sources = [*(int(i) for i in graph.inputs), *cut]
        graph.inputs, graph.outputs = sources, [own.get(i, i) for i in results]
        model.signatureDefs = []
        builder = flatbuffers.Builder(len(self._data) + (1 << 16))
        builder.Finish(model.Pack(builder), b"TFL3")
        return bytes(builder.Output()), sources, results


def _schema() -> Any:
    try:
        from ai_edge_litert import schema_py_generated
    except ImportError as error:
        raise MissingExtraError("LiteRT", "tflite") from error
    return schema_py_generated


def _unique(names: list[str]) -> list[str]:
    seen: set[str] = set()
    found = []
    for i, name in enumerate(names):
        chosen = name if name and name not in seen else f"{name}#{i}"
        seen.add(chosen)
        found.append(chosen)
    return found
