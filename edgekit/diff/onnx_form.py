"""An ONNX graph, its tensors read as extra outputs and replaced by extra inputs of the same name.

The producer of a replaced tensor writes under another name and the tensor becomes a graph input: every
reader, in subgraphs too, then takes the given value, and one inference yields all local results.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from edgekit.diff.forms import INPUT, Layer
from edgekit.errors import SourceError
from edgekit.graph import io as graphs
from edgekit.graph import ops
from edgekit.graph.ops import Trait
from edgekit.quantize import rescaled

if TYPE_CHECKING:
    from edgekit.artifact.manifest import Artifact
    from edgekit.types import Array

_OWN = "::own"
_THROUGH = (
    ops.named(Trait.ACTIVATION | Trait.QUANTIZES) - {"Elu", "PRelu"}  # which no runtime here fuses
) | {"BatchNormalization", "Cast", "Identity", "Add"}
"""What belongs to the layer in front of it, as long as it reads nothing else of its own."""
_WEIGHTED = ops.named(Trait.WEIGHTED) | {"MatMulNBits", "MatMulInteger", "ConvInteger"}
_LIMIT = 1_900_000_000


@dataclass(frozen=True, kw_only=True)
class _Pair:
    """A QuantizeLinear or DequantizeLinear with one scale."""

    scale: float
    zero: int
    dtype: np.dtype[Any]


def form(artifact: Artifact) -> OnnxForm | None:
    """ONNX Runtime's, with its kernels; an artifact in ORT format alone cannot be read."""
    path = artifact.model
    return OnnxForm("ONNX Runtime", path, kernels=True) if path.suffix == ".onnx" else None


class OnnxForm:
    """See :class:`edgekit.diff.forms.Form`.

    ``kernels`` runs the graph as ONNX Runtime optimizes it: quantized tensors are then read and replaced as
    integers, so that Q/DQ around an operator fuse into its integer kernel as in the artifact. Without it the
    graph runs as written, and the real values in front of and behind each quantizer are layers of their own.
    """

    def __init__(self, title: str, path: Path, *, kernels: bool = False, proto: Any = None) -> None:
        self._title, self._path, self._kernels = title, path, kernels
        self._proto: onnx.ModelProto = proto or _load(path)
        self._graph = self._proto.graph
        self._initializers = {i.name: i for i in self._graph.initializer}
        self._producer = {o: n for n in self._graph.node for o in n.output if o}
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self._graph.node:
            for name in dict.fromkeys((*node.input, *_captured(node))):
                self._readers.setdefault(name, []).append(node)
        self._sessions: dict[tuple[str, ...], Any] = {}
        self._dtypes: dict[str, np.dtype[Any]] = {}

    @property
    def title(self) -> str:
        """For people."""
        return self._title

    @cached_property
    def outputs(self) -> tuple[str, ...]:
        """Graph outputs."""
        return tuple(o.name for o in self._graph.output)

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """Every tensor of real values that depends on the inputs."""
        found = [
            Layer(
                tensor=name,
                node=name,
                op=INPUT,
                module="",
                names=(name,),
                owner=name,
                activated=self._activated(name),
            )
            for name in self._inputs
        ]
        for node in self._graph.node:
            for name in node.output:
                if name in self._alive and (layer := self._layer(node, name)) is not None:
                    found.append(layer)
        return tuple(found)

    @cached_property
    def weight_bits(self) -> int:
        """Width of the coarsest matrix."""
        widths = {
            TensorProto.INT8: 8, TensorProto.UINT8: 8, TensorProto.INT4: 4, TensorProto.UINT4: 4,
            TensorProto.FLOAT16: 16, TensorProto.BFLOAT16: 16,
        }  # fmt: skip
        found = [widths.get(i.data_type, 32) for i in self._graph.initializer if len(i.dims) >= 2]
        found += [
            a.i
            for n in self._graph.node
            if n.op_type == "MatMulNBits"
            for a in n.attribute
            if a.name == "bits"
        ]
        return min(found, default=32)

    @cached_property
    def float_bits(self) -> int:
        """Significant bits of the floats that are computed with."""
        kinds = {i.data_type for i in self._graph.initializer if len(i.dims) >= 1}
        return 8 if TensorProto.BFLOAT16 in kinds else 11 if TensorProto.FLOAT16 in kinds else 24

    def free(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """One inference with every tensor as an output."""
        tensors = [layer.tensor for layer in self.layers if layer.op != INPUT]
        given = {name: np.asarray(inputs[name]) for name in self._inputs if name in inputs}
        return given | self._run(inputs, {}, tensors)

    def forced(self, inputs: Mapping[str, Array], values: Mapping[str, Array]) -> dict[str, Array]:
        """One inference with the tensors of ``values`` replaced."""
        own = {name: np.asarray(inputs[name]) for name in values if name in self._inputs}
        inner = {name: value for name, value in values.items() if name not in own}
        if any(name not in self._dtypes for name in inner):
            self.free(inputs)
        replaced = {name: values[name].astype(array.dtype) for name, array in own.items()}
        return own | self._run({**inputs, **replaced}, inner, [])

    def received(self, values: Mapping[str, Array]) -> dict[str, Array]:
        """Rounded where the tensor is read as integers."""
        return {name: self._real(name, self._stored(name, value)) for name, value in values.items()}

    def rounded(self, bits: int) -> OnnxForm:
        """The same graph with weights as coarse as ``bits`` make them, a scale an output channel."""
        proto = copy.deepcopy(self._proto)
        for initializer in proto.graph.initializer:
            if initializer.data_type == TensorProto.FLOAT and len(initializer.dims) >= 2:
                array = numpy_helper.to_array(initializer)
                readers = self._readers.get(initializer.name, [])
                coarse = _coarse(array, bits, _channel_axis(readers[0], initializer.name) if readers else 0)
                initializer.CopyFrom(numpy_helper.from_array(coarse, initializer.name))
        return OnnxForm(self._title, self._path, proto=proto)

    # --- reading the graph ------------------------------------------------------------------------------

    @cached_property
    def _inputs(self) -> tuple[str, ...]:
        return tuple(i.name for i in self._graph.input if i.name not in self._initializers)

    @cached_property
    def _alive(self) -> set[str]:
        """Tensors that depend on the inputs."""
        live = set(self._inputs)
        for node in self._graph.node:
            if any(name in live for name in (*node.input, *_captured(node))):
                live.update(o for o in node.output if o)
        return live

    def _layer(self, node: onnx.NodeProto, name: str) -> Layer | None:
        names: tuple[str, ...] = (name,)
        bits, producer, source = 0, node, ""
        if node.op_type == "QuantizeLinear":
            pair = self._pair(node)
            if not self._kernels or pair is None:
                return None
            bits, source = pair.dtype.itemsize * 8, node.input[0]
            names = (source, *(o for r in self._readers.get(name, ()) for o in r.output))
            producer = self._producer.get(source, node)
        elif node.op_type == "DequantizeLinear":
            quantizer = self._producer.get(node.input[0])
            if self._kernels or quantizer is None or quantizer.op_type != "QuantizeLinear":
                return None if self._kernels else self._plain(node, name)
            pair = self._pair(quantizer)
            bits = 0 if pair is None else pair.dtype.itemsize * 8
            source = quantizer.input[0]
            names = (source, name)
            producer = self._producer.get(source, node)
        else:
            quantizers = [r for r in self._readers.get(name, ()) if r.op_type == "QuantizeLinear"]
            if self._kernels and quantizers and len(quantizers) == len(self._readers[name]):
                return None
            behind = [o for q in quantizers for r in self._readers.get(q.output[0], ()) for o in r.output]
            names = (name, *behind)
        if source in self._inputs:
            return Layer(
                tensor=name, node=source, op=node.op_type, module="", names=names, bits=bits, owner=source
            )
        owner = self._owner(producer)
        return Layer(
            tensor=name,
            node=producer.name,
            op=producer.op_type,
            module=self._module(producer),
            names=names,
            bits=bits,
            owner=owner.name,
            owner_module=self._module(owner) or self._module(producer),
            activated=self._activated(name),
            factors=rescaled.read(producer),
        )

    def _module(self, node: onnx.NodeProto) -> str:
        """From the exporter's metadata; where a simplifier dropped it, from the names of the weights."""
        if path := graphs.module_path(node):
            return path
        for name in node.input:
            stem, _, kind = name.rpartition(".")
            if kind in ("weight", "bias") and name in self._initializers:
                return str(stem)
        return ""

    def _plain(self, node: onnx.NodeProto, name: str) -> Layer:
        return Layer(
            tensor=name, node=node.name, op=node.op_type, module=self._module(node), names=(name,),
            owner=node.name, owner_module=self._module(node),
        )  # fmt: skip

    def _owner(self, node: onnx.NodeProto) -> onnx.NodeProto:
        """The weighted node that ``node`` only finishes (activation, folded bias), else ``node`` itself."""
        current = node
        while current.op_type in _THROUGH and current.op_type not in _WEIGHTED:
            sources = [i for i in current.input if i in self._producer and i in self._alive]
            if len(sources) != 1 or len(self._readers.get(sources[0], ())) != 1:
                return node
            current = self._producer[sources[0]]
        return current if current.op_type in _WEIGHTED else node

    def _activated(self, name: str) -> str:
        readers = self._readers.get(name, ())
        only = readers[0] if len(readers) == 1 and name not in self.outputs else None
        return only.output[0] if only is not None and ops.has(only, Trait.CLIPS) else ""

    def _pair(self, node: onnx.NodeProto) -> _Pair | None:
        scale = self._initializers.get(node.input[1])
        zero = self._initializers.get(node.input[2]) if len(node.input) > 2 else None
        if scale is None:
            return None
        scales = numpy_helper.to_array(scale)
        zeros = np.zeros((), np.uint8) if zero is None else numpy_helper.to_array(zero)
        if scales.size != 1 or zeros.size != 1 or zeros.dtype.kind not in "iu":
            return None
        return _Pair(scale=float(scales.reshape(())), zero=int(zeros.reshape(())), dtype=zeros.dtype)

    # --- running it -------------------------------------------------------------------------------------

    def _run(
        self, inputs: Mapping[str, Array], values: Mapping[str, Array], also: Sequence[str]
    ) -> dict[str, Array]:
        cut = tuple(sorted(values))
        session = self._session(cut, also)
        feeds = dict(inputs) | {n: self._stored(n, v) for n, v in values.items()}
        results = graphs.run(session, feeds)
        found: dict[str, Array] = {}
        for name, array in results.items():
            own = name.removesuffix(_OWN)
            if array.dtype.kind == "f" or own in self.outputs or self._pair_of(own) is not None:
                self._dtypes.setdefault(own, array.dtype)
                found[own] = self._real(own, array)
        return found

    def _real(self, name: str, stored: Array) -> Array:
        pair = self._pair_of(name)
        if pair is not None:
            return ((stored.astype(np.float32) - pair.zero) * np.float32(pair.scale)).astype(np.float32)
        return stored.astype(np.float32) if stored.dtype.kind == "f" else stored

    def _pair_of(self, name: str) -> _Pair | None:
        node = self._producer.get(name)
        return self._pair(node) if node is not None and node.op_type == "QuantizeLinear" else None

    def _stored(self, name: str, value: Array) -> Array:
        pair = self._pair_of(name)
        if pair is None:
            return np.ascontiguousarray(value.astype(self._dtypes.get(name, value.dtype)))
        return quantized(value, pair.scale, pair.zero, pair.dtype)

    def _session(self, cut: tuple[str, ...], also: Sequence[str]) -> Any:
        key = (*cut, "|", *also)
        if key not in self._sessions:
            self._sessions.clear()  # two sessions of a large model are one too many
            self._sessions[key] = _session(self._cut(cut, also), self._path, optimized=self._kernels)
        return self._sessions[key]

    def _cut(self, cut: Iterable[str], also: Iterable[str]) -> onnx.ModelProto:
        replaced = set(cut)
        proto = onnx.ModelProto()
        proto.CopyFrom(self._proto)
        del proto.graph.value_info[:]
        for node in proto.graph.node:
            for i, name in enumerate(node.output):
                if name in replaced:
                    node.output[i] = name + _OWN
        for name in sorted(replaced):
            kind = onnx.helper.np_dtype_to_tensor_dtype(self._dtypes[name])
            proto.graph.input.append(onnx.helper.make_tensor_value_info(name, kind, None))
        del proto.graph.output[:]
        for name in dict.fromkeys((*replaced, *also, *self.outputs)):
            proto.graph.output.append(onnx.ValueInfoProto(name=name + _OWN if name in replaced else name))
        return proto


def quantized(value: Array, scale: float, zero: int, dtype: np.dtype[Any]) -> Array:
    """Real values as the integers of an affine mapping; NaN becomes zero, infinities the limits."""
    limits = np.iinfo(dtype)
    steps = np.rint(np.nan_to_num(value.astype(np.float64) / scale, posinf=1e9, neginf=-1e9)) + zero
    return np.ascontiguousarray(np.clip(steps, limits.min, limits.max).astype(dtype))


def _load(path: Path) -> onnx.ModelProto:
    proto = graphs.read_proto(path)
    onnx.load_external_data_for_model(proto, str(path.resolve().parent))
    if proto.functions:
        from onnx import inliner

        proto = inliner.inline_local_functions(proto)
    return proto


def _session(proto: onnx.ModelProto, path: Path, *, optimized: bool) -> Any:
    import tempfile

    with tempfile.TemporaryDirectory(prefix="edgekit-diff-") as folder:
        file = Path(folder) / path.name
        onnx.save_model(
            proto,
            str(file),
            save_as_external_data=proto.ByteSize() > _LIMIT,
            location=f"{path.name}.data",
        )
        try:
            return graphs.session(file, optimized=optimized)
        except SourceError as error:
            raise SourceError(
                f"{path} cannot be run layer by layer: {error.message}",
                hint="compare another form of the model",
            ) from error


def _captured(node: onnx.NodeProto) -> tuple[str, ...]:
    """Names of the surrounding graph that the node's subgraphs read."""
    found: dict[str, None] = {}
    for attribute in node.attribute:
        for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
            own = {i.name for i in (*inner.input, *inner.initializer)} | {
                o for n in inner.node for o in n.output
            }
            for child in inner.node:
                found.update(dict.fromkeys(n for n in (*child.input, *_captured(child)) if n not in own))
            found.update(dict.fromkeys(o.name for o in inner.output if o.name not in own))
    return tuple(found)


def _channel_axis(node: onnx.NodeProto, weight: str) -> int:
    if node.op_type == "ConvTranspose":
        return 1
    if node.op_type == "Gemm":
        return 0 if any(a.name == "transB" and a.i for a in node.attribute) else 1
    if node.op_type == "MatMul":
        return -1 if node.input[1] == weight else -2
    return 0


def _coarse(array: Array, bits: int, axis: int) -> Array:
    if bits >= 32:
        return array
    if bits == 16:
        return array.astype(np.float16).astype(np.float32)
    others = tuple(i for i in range(array.ndim) if i != axis % array.ndim)
    scale = np.abs(array).max(axis=others, keepdims=True) / (2 ** (bits - 1) - 1)
    scale = np.where(scale > 0, scale, 1.0)
    return (np.rint(array / scale) * scale).astype(np.float32)
