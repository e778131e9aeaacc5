"""An ONNX graph, its tensors read as extra outputs and replaced by extra inputs of the same name.

The producer of a replaced tensor writes under another name and the tensor becomes a graph input: every
reader, in subgraphs too, then takes that input, and one inference yields all local results.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto, inliner, numpy_helper

from edgekit.core.files import temporary
from edgekit.diff.forms import INPUT, CutForm, Layer
from edgekit.diff.views import real, stored
from edgekit.errors import SourceError
from edgekit.graph import io as graphs
from edgekit.graph import ops
from edgekit.graph.ops import Trait
from edgekit.quantize import rescaled
from edgekit.quantize.params import Affine, quantize_weight

if TYPE_CHECKING:
    import onnxruntime

    from edgekit.artifact.manifest import Artifact
    from edgekit.types import Array

_OWN = "::own"
_THROUGH = (
    ops.named(Trait.ACTIVATION | Trait.QUANTIZES) - {"Elu", "PRelu"}  # which no runtime here fuses
) | {"BatchNormalization", "Cast", "Identity", "Add"}
"""What belongs to the layer in front of it, as long as it reads nothing else of its own."""
_WEIGHTED = ops.named(Trait.WEIGHTED) | {"MatMulNBits", "MatMulInteger", "ConvInteger"}
_WIDTHS = {
    TensorProto.INT8: 8, TensorProto.UINT8: 8, TensorProto.INT4: 4, TensorProto.UINT4: 4,
    TensorProto.FLOAT16: 16, TensorProto.BFLOAT16: 16,
}  # fmt: skip
_LIMIT = 1_900_000_000
"""Bytes of a model that protobuf, which ends at 2 GiB, takes in one file."""


def form(artifact: Artifact) -> OnnxForm | None:
    """ONNX Runtime's, with its kernels; an artifact in ORT format alone cannot be read."""
    path = artifact.model
    return OnnxForm("ONNX Runtime", path, kernels=True) if path.suffix == ".onnx" else None


class OnnxForm(CutForm["onnxruntime.InferenceSession"]):
    """See :class:`edgekit.diff.forms.Form`.

    ``kernels`` runs the graph as ONNX Runtime optimizes it: quantized tensors are then read and replaced as
    integers, so that Q/DQ around an operator fuse into its integer kernel as in the artifact. Without it the
    graph runs as written, and the real values in front of and behind each quantizer are layers of their own.
    """

    def __init__(
        self, title: str, path: Path, *, kernels: bool = False, proto: onnx.ModelProto | None = None
    ) -> None:
        self.title, self._path, self._kernels = title, path, kernels
        self._proto = proto or _load(path)
        self._graph = self._proto.graph
        self._initializers = {i.name: i for i in self._graph.initializer}
        self._producer = {o: n for n in self._graph.node for o in n.output if o}
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self._graph.node:
            for name in dict.fromkeys((*node.input, *_captured(node))):
                self._readers.setdefault(name, []).append(node)
        self._dtypes: dict[str, np.dtype[np.generic]] = {}

    @cached_property
    def outputs(self) -> tuple[str, ...]:
        """Graph outputs."""
        return tuple(o.name for o in self._graph.output)

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """Every tensor of real values that depends on the inputs."""
        inputs = [
            Layer(
                tensor=n, node=n, op=INPUT, module="", names=(n,), owner=n, activated=self._activated(n)
            )
            for n in self._inputs
        ]  # fmt: skip
        inner = [self._layer(node, n) for node in self._graph.node for n in node.output if n in self._alive]
        return (*inputs, *(layer for layer in inner if layer is not None))

    @cached_property
    def weight_bits(self) -> int:
        """Width of the coarsest matrix."""
        blocks = [n for n in self._graph.node if n.op_type == "MatMulNBits"]
        widths = [_WIDTHS.get(i.data_type, 32) for i in self._graph.initializer if len(i.dims) >= 2]
        widths += [a.i for n in blocks for a in n.attribute if a.name == "bits"]
        return min(widths, default=32)

    @cached_property
    def float_bits(self) -> int:
        """Significant bits of the floats that are computed with."""
        types = {i.data_type for i in self._graph.initializer if len(i.dims) >= 1}
        return 8 if TensorProto.BFLOAT16 in types else 11 if TensorProto.FLOAT16 in types else 24

    def forced(self, inputs: Mapping[str, Array], values: Mapping[str, Array]) -> dict[str, Array]:
        """One inference with the tensors of ``values`` replaced; those of inputs are given in their place."""
        own = {name: np.asarray(inputs[name]) for name in values if name in self._inputs}
        inner = {name: value for name, value in values.items() if name not in own}
        if any(name not in self._dtypes for name in inner):
            self.free(inputs)  # which notes the dtypes that the new inputs must have
        replaced = {name: values[name].astype(array.dtype) for name, array in own.items()}
        return own | self._run({**inputs, **replaced}, inner, [])

    def received(self, values: Mapping[str, Array]) -> dict[str, Array]:
        """Rounded where the tensor is read as integers."""
        return {name: self._real(name, self._stored(name, value)) for name, value in values.items()}

    def rounded(self, bits: int) -> OnnxForm:
        """The same graph with weights as coarse as ``bits`` (at most 8) make them, a scale an output channel."""
        proto = copy.deepcopy(self._proto)
        for initializer in proto.graph.initializer:
            if initializer.data_type == TensorProto.FLOAT and len(initializer.dims) >= 2:
                weight = numpy_helper.to_array(initializer)
                readers = self._readers.get(initializer.name, [])
                axis = _channel_axis(readers[0], initializer.name) if readers else 0
                coarse = quantize_weight(weight, axis % weight.ndim, bits).real
                initializer.CopyFrom(numpy_helper.from_array(coarse, initializer.name))
        return OnnxForm(self.title, self._path, proto=proto)

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
        """The output ``name`` of ``node`` as a layer; ``None`` for one that is not compared."""
        if node.op_type == "QuantizeLinear":
            affine = self._affine(node)
            if not self._kernels or affine is None:
                return None
            readers = self._readers.get(name, ())
            return self._quantized(node, name, node.input[0], affine, [o for r in readers for o in r.output])
        if node.op_type == "DequantizeLinear":
            quantizer = self._producer.get(node.input[0])
            if self._kernels:
                return None
            if quantizer is None or quantizer.op_type != "QuantizeLinear":
                module = self._module(node)
                return Layer(
                    tensor=name, node=node.name, op=node.op_type, module=module, names=(name,),
                    owner=node.name, owner_module=module,
                )  # fmt: skip
            return self._quantized(node, name, quantizer.input[0], self._affine(quantizer), [name])
        quantizers = [r for r in self._readers.get(name, ()) if r.op_type == "QuantizeLinear"]
        if self._kernels and quantizers and len(quantizers) == len(self._readers[name]):
            return None  # the integers behind it are read instead
        behind = [o for q in quantizers for r in self._readers.get(q.output[0], ()) for o in r.output]
        return self._made_by(node, name, (name, *behind), 0)

    def _quantized(
        self, node: onnx.NodeProto, name: str, source: str, affine: Affine | None, names: list[str]
    ) -> Layer:
        """A tensor in integers of the real tensor ``source``."""
        bits = 0 if affine is None else np.dtype(affine.dtype).itemsize * 8
        if source in self._inputs:
            return Layer(
                tensor=name, node=source, op=node.op_type, module="", names=(source, *names), bits=bits,
                owner=source,
            )  # fmt: skip
        return self._made_by(self._producer.get(source, node), name, (source, *names), bits)

    def _made_by(self, producer: onnx.NodeProto, name: str, names: tuple[str, ...], bits: int) -> Layer:
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

    def _affine(self, node: onnx.NodeProto) -> Affine | None:
        """Of a QuantizeLinear or DequantizeLinear with one scale; ``None`` for one by channel."""
        scale = self._initializers.get(node.input[1])
        zero = self._initializers.get(node.input[2]) if len(node.input) > 2 else None
        if scale is None:
            return None
        scales = numpy_helper.to_array(scale)
        zeros = np.zeros((), np.uint8) if zero is None else numpy_helper.to_array(zero)
        if scales.size != 1 or zeros.size != 1 or zeros.dtype.kind not in "iu":
            return None
        return Affine(scale=scales.item(), zero_point=zeros.item(), dtype=zeros.dtype.name)

    # --- running it -------------------------------------------------------------------------------------

    def _run(
        self, inputs: Mapping[str, Array], values: Mapping[str, Array], read: Iterable[str]
    ) -> dict[str, Array]:
        session = self._prepared(sorted(values), read)
        results = graphs.run(session, {**inputs, **{n: self._stored(n, v) for n, v in values.items()}})
        tensors: dict[str, Array] = {}
        for name, array in results.items():
            own = name.removesuffix(_OWN)
            if array.dtype.kind == "f" or own in self.outputs or self._written(own) is not None:
                self._dtypes.setdefault(own, array.dtype)
                tensors[own] = self._real(own, array)
        return tensors

    def _written(self, name: str) -> Affine | None:
        """The mapping of a tensor that a QuantizeLinear writes."""
        node = self._producer.get(name)
        return self._affine(node) if node is not None and node.op_type == "QuantizeLinear" else None

    def _real(self, name: str, array: Array) -> Array:
        affine = self._written(name)
        if affine is not None:
            return real(array, affine)
        return array.astype(np.float32) if array.dtype.kind == "f" else array

    def _stored(self, name: str, value: Array) -> Array:
        affine = self._written(name)
        if affine is not None:
            return stored(value, affine)
        return np.asarray(value.astype(self._dtypes.get(name, value.dtype)), order="C")

    def _prepare(self, cut: tuple[str, ...], read: tuple[str, ...]) -> onnxruntime.InferenceSession:
        return _session(self._cut(cut, read), self._path, optimized=self._kernels)

    def _cut(self, cut: Iterable[str], read: Iterable[str]) -> onnx.ModelProto:
        """Producers of the tensors ``cut`` write under another name, and the tensors become graph inputs."""
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
        for name in dict.fromkeys((*replaced, *read, *self.outputs)):
            proto.graph.output.append(onnx.ValueInfoProto(name=name + _OWN if name in replaced else name))
        return proto


def _load(path: Path) -> onnx.ModelProto:
    proto = graphs.read_proto(path)
    onnx.load_external_data_for_model(proto, str(path.resolve().parent))
    return inliner.inline_local_functions(proto) if proto.functions else proto


def _session(proto: onnx.ModelProto, path: Path, *, optimized: bool) -> onnxruntime.InferenceSession:
    with temporary("diff") as folder:
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
    outer: dict[str, None] = {}
    for attribute in node.attribute:
        for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
            own = {i.name for i in (*inner.input, *inner.initializer)} | {
                o for n in inner.node for o in n.output
            }
            for child in inner.node:
                outer.update(dict.fromkeys(n for n in (*child.input, *_captured(child)) if n not in own))
            outer.update(dict.fromkeys(o.name for o in inner.output if o.name not in own))
    return tuple(outer)


def _channel_axis(node: onnx.NodeProto, weight: str) -> int:
    if node.op_type == "ConvTranspose":
        return 1
    if node.op_type == "Gemm":
        return 0 if any(a.name == "transB" and a.i for a in node.attribute) else 1
    if node.op_type == "MatMul":
        return -1 if node.input[1] == weight else -2
    return 0
