"""A TFLite file, its tensors read as extra outputs and replaced by extra inputs, in the flatbuffer itself.

As in :mod:`edgekit.diff.onnx_form`: the producer of a replaced tensor writes a copy of it, and the tensor
becomes an input of the graph. LiteRT runs the result with its own kernels.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from edgekit.backends.tflite import flatbuffer_schema
from edgekit.backends.tflite.reading import read_tree
from edgekit.diff.forms import INPUT, CutForm, Layer
from edgekit.diff.views import real, stored
from edgekit.errors import SourceError
from edgekit.quantize.params import Affine

if TYPE_CHECKING:
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.interpreter import Interpreter

    from edgekit.artifact.manifest import Artifact
    from edgekit.types import Array

_STORED = {3: "uint8", 7: "int16", 9: "int8"}
"""TensorType UINT8, INT16, INT8."""
_FLOATS = (0, 1)
_PLAIN = {0: "float32", 1: "float16", 2: "int32", 4: "int64", 6: "bool"}
_WEIGHT_BITS = {1: 16, 3: 8, 7: 16, 9: 8, 17: 4}
_INT32 = 2  # biases
_HYBRID = frozenset(("FULLY_CONNECTED", "CONV_2D", "DEPTHWISE_CONV_2D", "BATCH_MATMUL"))


def form(artifact: Artifact) -> TfliteForm:
    """LiteRT's. Raises :class:`SourceError` for a damaged file."""
    path = artifact.model
    return TfliteForm(f"LiteRT ({path.name})", path, moved=artifact.manifest.channels_moved)


class _Program(NamedTuple):
    """An interpreter, and the tensors of its inputs and of its outputs, in order."""

    interpreter: Interpreter
    sources: list[int]
    results: list[int]


class TfliteForm(CutForm[_Program]):
    """See :class:`edgekit.diff.forms.Form`. Inputs and outputs go by the names of the signature.

    ``moved`` names the inputs and outputs whose channels are last here and axis 1 in the source.
    """

    float_bits = 24

    def __init__(self, title: str, path: Path, *, moved: Iterable[str] = ()) -> None:
        self.title, self._path, self._moved = title, path, frozenset(moved)
        self._schema = flatbuffer_schema()
        self._data = path.read_bytes()
        model = self._model()
        self._graph = model.subgraphs[0]
        self._codes = [max(c.builtinCode, c.deprecatedBuiltinCode) for c in model.operatorCodes]
        self._tensors = self._graph.tensors
        self._names = _unique([(t.name or b"").decode(errors="replace") for t in self._tensors])
        self._index = {name: i for i, name in enumerate(self._names)}
        self._signature = self._signatures(model)

    @cached_property
    def outputs(self) -> tuple[str, ...]:
        """Tensor names of the outputs."""
        return tuple(self._names[i] for i in self._graph.outputs)

    @cached_property
    def weight_bits(self) -> int:
        """Width of the coarsest constant matrix."""
        computed = {o for op in self._graph.operators for o in op.outputs} | set(self._graph.inputs)
        constants = [t for i, t in enumerate(self._tensors) if i not in computed and t.type != _INT32]
        matrices = [t for t in constants if t.shape is not None and len(t.shape) >= 2]
        return min((_WEIGHT_BITS.get(t.type, 32) for t in matrices), default=32)

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """Every tensor of real values that depends on the inputs."""
        live = set(self._graph.inputs)
        inputs = [self._names[i] for i in self._graph.inputs]
        layers = [Layer(tensor=name, node=name, op=INPUT, module="", names=(name,)) for name in inputs]
        for op in self._graph.operators:
            if any(i in live for i in op.inputs):
                live.update(op.outputs)
                layers += [
                    self._layer(op, i) for i in op.outputs if self._readable(i) and not self._seen_twice(op)
                ]
        return tuple(layers)

    def _seen_twice(self, op: schema.OperatorT) -> bool:
        """Whether ``op`` gives the real values of an integer tensor within the graph: the same layer once more."""
        return self._code(op) == "DEQUANTIZE" and not set(op.outputs) & set(self._graph.outputs)

    def received(self, values: Mapping[str, Array]) -> dict[str, Array]:
        """Rounded where the tensor is stored as integers, and where the kernel that reads it makes integers of it."""
        rounded = {}
        for name, value in values.items():
            index = self._index[name]
            kept = self._real(index, self._stored(index, value)).reshape(value.shape)
            rounded[name] = _rounded_by_row(kept) if index in self._dynamic else kept
        return rounded

    @cached_property
    def _dynamic(self) -> frozenset[int]:
        """Tensors that a dynamic-range kernel reads as float: its weights are INT8, it rounds its input every run."""
        found = set()
        integers = {
            int(op.outputs[0]): int(op.inputs[0])
            for op in self._graph.operators
            if self._seen_twice(op) and len(op.inputs) and len(op.outputs)
        }
        for op in self._graph.operators:
            if self._code(op) not in _HYBRID or len(op.inputs) < 2 or min(op.inputs[:2]) < 0:
                continue
            data, weights = int(op.inputs[0]), int(op.inputs[1])
            if self._tensors[data].type in _FLOATS and self._tensors[weights].type in _STORED:
                found |= {data, integers.get(data, data)}
        return frozenset(found)

    # --- reading the file -------------------------------------------------------------------------------

    def _model(self) -> schema.ModelT:
        tree = read_tree(self._data, str(self._path))
        graph = tree.subgraphs[0]
        for holder in (graph, *graph.operators):
            holder.inputs = [] if holder.inputs is None else holder.inputs
            holder.outputs = [] if holder.outputs is None else holder.outputs
        return tree

    def _signatures(self, model: schema.ModelT) -> dict[str, int]:
        if not model.signatureDefs:
            return {self._names[i]: i for i in self._graph.inputs}
        maps = model.signatureDefs[0].inputs or []
        return {(m.name or b"").decode(errors="replace"): m.tensorIndex for m in maps}

    def _readable(self, index: int) -> bool:
        tensor = self._tensors[index]
        return tensor.type in _FLOATS or (tensor.type in _STORED and self._affine(index) is not None)

    def _affine(self, index: int) -> Affine | None:
        """Of an integer tensor with one scale; ``None`` for one by channel."""
        tensor = self._tensors[index]
        q = tensor.quantization
        if q is None or q.scale is None or len(q.scale) != 1:
            return None
        zero = q.zeroPoint[0] if q.zeroPoint is not None and len(q.zeroPoint) else 0
        return Affine(scale=float(q.scale[0]), zero_point=int(zero), dtype=_STORED.get(tensor.type, ""))

    def _layer(self, op: schema.OperatorT, index: int) -> Layer:
        name = self._names[index]
        parts = name.split("/")
        # The compiler names tensors module/name: what the graph called it is one of the tails.
        tails = ["/".join(parts[i:]) for i in range(len(parts))]
        stems = [s.removesuffix("_QuantizeLinear").removesuffix("_DequantizeLinear") for s in tails]
        return Layer(
            tensor=name,
            node=name,
            op=self._code(op),
            module=parts[0] if len(parts) > 1 else "",
            names=tuple(dict.fromkeys((*tails, *stems))),
            bits=_WEIGHT_BITS[kind] if (kind := self._tensors[index].type) in _STORED else 0,
            owner=name,
        )

    def _code(self, op: schema.OperatorT) -> str:
        codes = vars(self._schema.BuiltinOperator).items()
        code = self._codes[op.opcodeIndex]
        return next((name for name, value in codes if value == code and not name.startswith("_")), "CUSTOM")

    # --- running it -------------------------------------------------------------------------------------

    def _run(
        self, inputs: Mapping[str, Array], values: Mapping[str, Array], read: Iterable[str]
    ) -> dict[str, Array]:
        program = self._prepared(sorted(values), dict.fromkeys((*read, *self.outputs)))
        interpreter = program.interpreter
        by_index = {i: self._input(name, i, inputs) for name, i in self._signature.items()}
        by_index |= {self._index[n]: self._stored(self._index[n], v) for n, v in values.items()}
        for index, detail in zip(program.sources, interpreter.get_input_details(), strict=True):
            interpreter.set_tensor(detail["index"], by_index[index])
        interpreter.invoke()
        tensors = {
            self._names[index]: self._real(index, interpreter.get_tensor(detail["index"]))
            for index, detail in zip(program.results, interpreter.get_output_details(), strict=True)
        }
        return {n: np.moveaxis(v, -1, 1) if n in self._moved else v for n, v in tensors.items()}

    def _input(self, name: str, index: int, inputs: Mapping[str, Array]) -> Array:
        if name not in inputs:
            raise SourceError(
                f"{self._path.name} has an input {name!r}, the samples have: {', '.join(inputs)}",
                hint="compare models with inputs of the same names",
            )
        value = np.asarray(inputs[name])
        return self._stored(index, np.moveaxis(value, 1, -1) if name in self._moved else value)

    def _stored(self, index: int, value: Array) -> Array:
        tensor, affine = self._tensors[index], self._affine(index)
        shape = tuple(int(d) for d in tensor.shape) if tensor.shape is not None else ()
        if tensor.type in _STORED and affine is not None and value.dtype.kind == "f":
            return stored(value, affine).reshape(shape)
        return np.ascontiguousarray(value, _PLAIN.get(tensor.type, value.dtype)).reshape(shape)

    def _real(self, index: int, value: Array) -> Array:
        affine = self._affine(index)
        if affine is not None and value.dtype.kind in "iu":
            return real(value, affine)
        return value.astype(np.float32) if value.dtype.kind == "f" else value

    def _prepare(self, cut: tuple[str, ...], read: tuple[str, ...]) -> _Program:
        from ai_edge_litert.interpreter import Interpreter  # an extra

        data, sources, results = self._cut([self._index[n] for n in cut], [self._index[n] for n in read])
        try:
            interpreter = Interpreter(model_content=data, num_threads=1)
            interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            raise SourceError(
                f"LiteRT does not run {self._path} layer by layer: {error}",
                hint="compare another form of the model; edgekit verify runs the file as it is",
            ) from error
        return _Program(interpreter, sources, results)

    def _cut(self, cut: list[int], read: list[int]) -> tuple[bytes, list[int], list[int]]:
        """The file with producers of ``cut`` writing copies, and ``read`` among the outputs; the tensors of both."""
        import flatbuffers  # comes with the extra

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
        results = list(dict.fromkeys([*cut, *read]))
        sources = [*(int(i) for i in graph.inputs), *cut]
        graph.inputs, graph.outputs = sources, [own.get(i, i) for i in results]
        model.signatureDefs = []  # they name the old inputs and outputs
        builder = flatbuffers.Builder(len(self._data) + (1 << 16))
        builder.Finish(model.Pack(builder), b"TFL3")
        return bytes(builder.Output()), sources, results


def _rounded_by_row(value: Array) -> Array:
    """As dynamic-range kernels read it at the coarsest: 127 steps to each row's largest value."""
    if value.dtype.kind != "f" or not value.ndim or not value.size:
        return value
    step = np.maximum(np.abs(value).max(-1, keepdims=True) / 127, np.finfo(np.float32).tiny)
    rounded: Array = (np.round(value / step) * step).astype(value.dtype)
    return rounded


def _unique(names: list[str]) -> list[str]:
    """The names, with ``#index`` behind those that are empty or taken already."""
    unique: dict[str, None] = {}
    for i, name in enumerate(names):
        unique[name if name and name not in unique else f"{name}#{i}"] = None
    return list(unique)
