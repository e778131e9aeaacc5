"""A decoder as the ONNX graph that onnxruntime-genai runs: one graph for prompt and single tokens, with a cache.

Inputs are ``input_ids`` and ``attention_mask`` and the cache's keys and values; outputs are the logits of the last
position and the cache. Attention is ONNX Runtime's GroupQueryAttention, which rotates queries and keys, reads the cache
and writes it in place; products with integers are MatMulNBits, and the table of embeddings is read by
GatherBlockQuantized from the same integers as the head where the two are one. Their definitions:
https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import onnx_ir as ir

from edgekit.quantize.block_offsets import COPIES, as_columns
from edgekit.quantize.block_weights import BlockWeights

if TYPE_CHECKING:
    from edgekit.load.decoder import Attention, Decoder, Feed, Layer, Linear, Norm
    from edgekit.types import Array

MICROSOFT = "com.microsoft"
OPSET = 21
_IR_VERSION = 10
Attributes: TypeAlias = int | float | str | Sequence[int]
Weights: TypeAlias = Mapping[str, BlockWeights]
"""The integers of products and of the table, by the name of the module; what is not there stays float32."""


def build(decoder: Decoder, weights: Weights, *, accuracy_level: int = 4) -> ir.Model:
    """The graph.

    ``weights`` are of whole modules: a projection that is a part of one takes its rows. ``accuracy_level`` is
    MatMulNBits': 4 rounds activations to INT8 in blocks, 1 computes in float32.
    """
    return _Builder(decoder, weights, accuracy_level).model()


class _Builder:
    def __init__(self, decoder: Decoder, weights: Weights, accuracy_level: int) -> None:
        self.decoder, self.weights, self.accuracy_level = decoder, weights, accuracy_level
        self.nodes: list[ir.Node] = []
        self.constants: dict[str, ir.Value] = {}
        self.widened: dict[str, ir.Value] = {}
        self.sums: dict[tuple[ir.Value, int], ir.Value] = {}
        self.extended: dict[tuple[ir.Value, int], ir.Value] = {}
        self.inputs: list[ir.Value] = []
        self.outputs: list[ir.Value] = []

    def model(self) -> ir.Model:
        decoder = self.decoder
        ids = self.input("input_ids", ir.DataType.INT64, ["batch_size", "sequence_length"])
        mask = self.input("attention_mask", ir.DataType.INT64, ["batch_size", "total_sequence_length"])
        lengths, total = self.lengths(mask)
        tables = {name: self.rotary(name) for name in decoder.rotary}
        state: _Sum = (self.embedded(ids), None)
        for i, layer in enumerate(decoder.layers):
            cache = self.cache(i, layer.attention)
            state = self.layer(
                layer, f"/layers.{i}", state, (*cache, lengths, total, *tables[layer.attention.rotary])
            )
        normed, _ = self.normed("/norm", state, decoder.norm)
        last = self.op("Gather", [normed, self.constant("last", np.asarray([-1]))], "/last", axis=1)
        logits = self.capped(self.head(last), decoder.softcap, "/head")
        logits.name = "logits"
        self.describe(logits, ["batch_size", 1, decoder.vocabulary])
        graph = ir.Graph(
            self.inputs,
            [logits, *self.outputs],
            nodes=self.nodes,
            initializers=list(self.constants.values()),
            opset_imports={"": OPSET, MICROSOFT: 1},
            name="model",
        )
        return ir.Model(graph, ir_version=_IR_VERSION, producer_name="edgekit")

    # --- the parts of a model ---------------------------------------------------------------------------

    def lengths(self, mask: ir.Value) -> tuple[ir.Value, ir.Value]:
        """How many tokens of each row count, less one, and how many there are in all; both INT32."""
        counted = self.op(
            "ReduceSum", [mask, self.constant("axis_1", np.asarray([1]))], "/mask/sum", keepdims=0
        )
        less = self.op("Sub", [counted, self.constant("one", np.asarray([1]))], "/mask/less")
        lengths = self.op("Cast", [less], "/mask/lengths", to=ir.DataType.INT32.value)
        shape = self.op("Shape", [mask], "/mask/shape", start=1, end=2)
        total = self.op("Squeeze", [shape, self.constant("axis_0", np.asarray([0]))], "/mask/size")
        return lengths, self.op("Cast", [total], "/mask/total", to=ir.DataType.INT32.value)

    def rotary(self, name: str) -> tuple[ir.Value, ir.Value]:
        """Cosines and sines ``[window, pairs]``: folded into constants when the model is loaded, which keeps the file
        small."""
        rotary = self.decoder.rotary[name]
        positions = self.constant("positions", np.arange(self.decoder.window, dtype=np.float32)[:, None])
        rates = self.constant(f"{name}.frequencies", rotary.frequencies.numpy().astype(np.float32)[None])
        angles = self.op("Mul", [positions, rates], f"/{name}/angles")
        tables = [self.op(op, [angles], f"/{name}/{op}") for op in ("Cos", "Sin")]
        cosines, sines = (self.times(t, rotary.factor, f"{t.name}/factor") for t in tables)
        return cosines, sines

    def embedded(self, ids: ir.Value) -> ir.Value:
        decoder = self.decoder
        stored = self.weights.get(decoder.embedding_name)
        if stored is None:
            table = self.constant("embedding", decoder.embedding.numpy())
            found = self.op("Gather", [table, ids], "/embedding")
        else:
            packed, scales, zeros = self.stored("embedding", stored)
            flat = self.constant("embedding.shape", np.asarray([stored.shape[0], -1]))
            rows = self.op("Reshape", [packed, flat], "/embedding/rows")
            found = self.op(
                "GatherBlockQuantized",
                [rows, ids, scales, zeros],
                "/embedding",
                domain=MICROSOFT,
                bits=stored.bits,
                block_size=stored.block,
                gather_axis=0,
                quantize_axis=1,
            )
            if stored.offsets is not None:
                found = self.with_offsets(found, ids, stored, stored.offsets)
        return self.times(found, decoder.embedding_factor, "/embedding/factor")

    def with_offsets(self, found: ir.Value, ids: ir.Value, stored: BlockWeights, offsets: Array) -> ir.Value:
        """Rows of the table, each block with its offset."""
        blocks = self.op(
            "Reshape",
            [found, self.constant("table_blocks", np.asarray([0, 0, -1, stored.block]))],
            "/embedding/blocks",
        )
        beside = self.constant("embedding.beside", offsets[..., None])
        given = self.op("Gather", [beside, ids], "/embedding/offsets")
        whole = self.op("Add", [blocks, given], "/embedding/whole")
        return self.op(
            "Reshape", [whole, self.constant("rows", np.asarray([0, 0, -1]))], "/embedding/rows_of_blocks"
        )

    def head(self, x: ir.Value) -> ir.Value:
        decoder = self.decoder
        if decoder.head is not None:
            return self.linear([decoder.head], x, "/head")[0]
        stored = self.weights.get(decoder.embedding_name)
        if stored is None:
            table = self.constant("embedding", decoder.embedding.numpy())
            return self.op("FusedMatMul", [x, table], "/head", domain=MICROSOFT, transB=1)
        return self.product("embedding", stored, x, "/head", shared=True)

    def layer(self, layer: Layer, where: str, state: _Sum, around: Sequence[ir.Value]) -> _Sum:
        normed, whole = self.normed(f"{where}/before_attention", state, layer.before_attention)
        attended = self.attention(layer.attention, f"{where}/attention", normed, around)
        if layer.parallel:
            fed = self.feed(layer.feed, f"{where}/feed", normed)
            return whole, self.op("Add", [attended, fed], f"{where}/both")
        attended = self.after(f"{where}/after_attention", attended, layer.after_attention)
        normed, whole = self.normed(f"{where}/before_feed", (whole, attended), layer.before_feed)
        fed = self.feed(layer.feed, f"{where}/feed", normed)
        return whole, self.after(f"{where}/after_feed", fed, layer.after_feed)

    def attention(self, a: Attention, where: str, x: ir.Value, around: Sequence[ir.Value]) -> ir.Value:
        past_key, past_value, present_key, present_value, lengths, total, cosines, sines = around
        parts: list[ir.Value | None]
        packed = a.query_norm is None and a.key_norm is None
        joined = self.linear([a.query, a.key, a.value], x, f"{where}/qkv", together=packed)
        if len(joined) == 1:
            parts = [joined[0], None, None]
        else:
            query = self.head_norm(joined[0], a.query_norm, a.head_size, f"{where}/query_norm")
            parts = [
                query,
                self.head_norm(joined[1], a.key_norm, a.head_size, f"{where}/key_norm"),
                joined[2],
            ]
        node = ir.node(
            "GroupQueryAttention",
            [*parts, past_key, past_value, lengths, total, cosines, sines],
            attributes={
                "num_heads": a.heads,
                "kv_num_heads": a.key_heads,
                "scale": float(a.scale),
                "local_window_size": a.window or -1,
                "softcap": float(a.softcap),
                "do_rotary": 1,
                "rotary_interleaved": 0,
            },
            domain=MICROSOFT,
            outputs=[ir.Value(name=f"{where}/attended"), present_key, present_value],
            name=where,
        )
        self.nodes.append(node)
        return self.linear([a.output], node.outputs[0], f"{where}/output")[0]

    def head_norm(self, x: ir.Value, norm: Norm | None, head_size: int, where: str) -> ir.Value:
        """A norm of each head's part, or of all heads together: its width says which."""
        if norm is None or norm.scale.shape[0] != head_size:
            return self.after(where, x, norm)
        heads = self.op(
            "Reshape",
            [x, self.constant(f"heads_{head_size}", np.asarray([0, 0, -1, head_size]))],
            f"{where}/heads",
        )
        back = self.constant("rows", np.asarray([0, 0, -1]))
        return self.op("Reshape", [self.after(where, heads, norm), back], f"{where}/joined")

    def feed(self, f: Feed, where: str, x: ir.Value) -> ir.Value:
        if f.gate is None:
            (hidden,) = self.linear([f.up], x, f"{where}/up")
            hidden = self.activated(f.activation, hidden, where)
        else:
            gate, up = (self.linear([p], x, f"{where}/{n}")[0] for p, n in ((f.gate, "gate"), (f.up, "up")))
            hidden = self.op("Mul", [self.activated(f.activation, gate, where), up], f"{where}/gated")
        return self.linear([f.down], hidden, f"{where}/down")[0]

    def activated(self, name: str, x: ir.Value, where: str) -> ir.Value:
        if name == "silu":
            return self.op("QuickGelu", [x], f"{where}/silu", domain=MICROSOFT, alpha=1.0)
        if name == "relu":
            return self.op("Relu", [x], f"{where}/relu")
        kind = "tanh" if name == "gelu-tanh" else "none"
        return self.op("Gelu", [x], f"{where}/gelu", approximate=kind)

    # --- norms ------------------------------------------------------------------------------------------

    def normed(self, where: str, state: _Sum, norm: Norm | None) -> tuple[ir.Value, ir.Value]:
        """The norm of a sum, and the sum."""
        residual, added = state
        if norm is None:
            whole = residual if added is None else self.op("Add", [residual, added], f"{where}/sum")
            return whole, whole
        if added is None:
            return self.after(where, residual, norm), residual
        scale, bias = self.norm_constants(norm)
        kind = "SkipLayerNormalization" if norm.centred else "SkipSimplifiedLayerNormalization"
        node = ir.node(
            kind,
            [residual, added, scale, *([bias] if norm.centred else [])],
            attributes={"epsilon": norm.epsilon},
            domain=MICROSOFT,
            outputs=[
                ir.Value(name=f"{where}:0"),
                ir.Value(name=""),
                ir.Value(name=""),
                ir.Value(name=f"{where}:3"),
            ],
            name=where,
        )
        self.nodes.append(node)
        return node.outputs[0], node.outputs[3]

    def after(self, where: str, x: ir.Value, norm: Norm | None) -> ir.Value:
        if norm is None:
            return x
        scale, bias = self.norm_constants(norm)
        kind = "LayerNormalization" if norm.centred else "SimplifiedLayerNormalization"
        inputs = [x, scale, bias] if norm.centred else [x, scale]
        return self.op(kind, inputs, where, axis=-1, epsilon=norm.epsilon, stash_type=1)

    def norm_constants(self, norm: Norm) -> tuple[ir.Value, ir.Value | None]:
        scale = self.constant(f"{norm.name}.scale", norm.scale.numpy())
        if not norm.centred:
            return scale, None
        bias = norm.scale.numpy() * 0 if norm.bias is None else norm.bias.numpy()
        return scale, self.constant(f"{norm.name}.bias", bias)

    # --- products ---------------------------------------------------------------------------------------

    def linear(
        self, parts: Sequence[Linear], x: ir.Value, where: str, *, together: bool = True
    ) -> list[ir.Value]:
        """``parts`` of one input as one product where they are of one form and may be ``together``, else one each."""
        stored = [self.part(p) for p in parts]
        alike = together and all((s is None) == (stored[0] is None) for s in stored)
        present = [s for s in stored if s is not None]
        alike = alike and all(s.like(present[0]) for s in present)
        if not alike and len(parts) > 1:
            names = ("query", "key", "value")
            return [self.linear([p], x, f"{where}/{n}")[0] for p, n in zip(parts, names, strict=True)]
        name = parts[0].name + (
            ".joined" if len(parts) > 1 else "" if parts[0].rows is None else f".{parts[0].rows[0]}"
        )
        if present:
            joined = BlockWeights.joined(present) if len(present) > 1 else present[0]
            result = self.product(name, joined, x, where)
        else:
            matrix = np.concatenate([p.weight.numpy() for p in parts]).T
            result = self.op(
                "MatMul", [x, self.constant(f"{name}.weight", np.ascontiguousarray(matrix))], where
            )
        if any(p.bias is not None for p in parts):
            biases = [
                np.zeros(p.weight.shape[0], np.float32) if p.bias is None else p.bias.numpy() for p in parts
            ]
            result = self.op(
                "Add", [result, self.constant(f"{name}.bias", np.concatenate(biases))], f"{where}/bias"
            )
        return [result]

    def part(self, linear: Linear) -> BlockWeights | None:
        stored = self.weights.get(linear.name)
        if stored is None or linear.rows is None:
            return stored
        return stored.selected(slice(*linear.rows))

    def product(
        self, name: str, stored: BlockWeights, x: ir.Value, where: str, *, shared: bool = False
    ) -> ir.Value:
        """``shared``: others read the same integers, which have no columns for offsets then."""
        columns = None if shared else as_columns(stored)
        if columns is not None:
            x, stored = self.with_sums(x, stored), columns
        outputs, inputs = stored.shape
        packed, scales, zeros = self.stored(name, stored)
        result = self.op(
            "MatMulNBits",
            [x, packed, scales, zeros],
            where,
            domain=MICROSOFT,
            K=inputs,
            N=outputs,
            bits=stored.bits,
            block_size=stored.block,
            accuracy_level=self.accuracy_level,
        )
        if stored.offsets is None:
            return result
        sums = self.block_sums(x, stored)
        offsets = self.offsets(name, stored, stored.offsets)
        return self.op(
            "Add", [result, self.op("MatMul", [sums, offsets], f"{where}/offset")], f"{where}/whole"
        )

    def offsets(self, name: str, stored: BlockWeights, offsets: Array) -> ir.Value:
        """``[blocks, outputs]``, as the sum of two numbers of float16 where it is one: folded when it is loaded."""
        first = (offsets - stored.middle * stored.scales).astype(np.float16)
        again = first.astype(np.float32) + np.float32(stored.middle) * stored.scales
        if not np.array_equal(again, offsets):
            return self.constant(f"{name}.offsets", offsets.T)
        middle = self.constant(f"middle_{stored.bits}", np.asarray(stored.middle, np.float32))
        steps = self.op("Mul", [self.wide(f"{name}.scales", stored.scales), middle], f"{name}/steps")
        whole = self.op(
            "Add", [self.wide(f"{name}.first", first.astype(np.float32)), steps], f"{name}/offsets"
        )
        return self.op("Transpose", [whole], f"{name}/offsets/turned", perm=[1, 0])

    def with_sums(self, x: ir.Value, stored: BlockWeights) -> ir.Value:
        """The inputs, and behind them the sums over each block. Shared by all readers."""
        if (x, stored.block) not in self.extended:
            sums = self.block_sums(x, stored)
            self.extended[x, stored.block] = self.op(
                "Concat", [x, *[sums] * COPIES], f"{x.name}/with_sums", axis=-1
            )
        return self.extended[x, stored.block]

    def block_sums(self, x: ir.Value, stored: BlockWeights) -> ir.Value:
        """The sums of the inputs over each block: what a block's offset is multiplied with. Shared by all readers."""
        if (x, stored.block) not in self.sums:
            if stored.shape[1] % stored.block:
                raise ValueError("offsets need whole blocks")
            shape = self.constant(f"blocks_{stored.block}", np.asarray([0, 0, -1, stored.block]))
            blocks = self.op("Reshape", [x, shape], f"{x.name}/blocks")
            axis = self.constant("axis_last", np.asarray([-1]))
            self.sums[x, stored.block] = self.op("ReduceSum", [blocks, axis], f"{x.name}/sums", keepdims=0)
        return self.sums[x, stored.block]

    def stored(self, name: str, stored: BlockWeights) -> tuple[ir.Value, ir.Value, ir.Value | None]:
        zeros = stored.packed_zeros()
        return (
            self.constant(f"{name}.integers", stored.packed()),
            self.wide(f"{name}.scales", stored.scales),
            None if zeros is None else self.constant(f"{name}.zeros", zeros),
        )

    def wide(self, name: str, array: Array) -> ir.Value:
        """Float32 numbers that are kept as float16 where that loses nothing: the runtime widens them at load."""
        half = array.astype(np.float16)
        if not np.array_equal(half.astype(np.float32), array):
            return self.constant(name, array)
        if name not in self.widened:
            kept = self.constant(name, half)
            self.widened[name] = self.op("Cast", [kept], f"{name}/wide", to=ir.DataType.FLOAT.value)
        return self.widened[name]

    # --- the graph itself -------------------------------------------------------------------------------

    def times(self, x: ir.Value, factor: float, name: str) -> ir.Value:
        if factor == 1.0:
            return x
        return self.op("Mul", [x, self.constant(f"{name}.value", np.asarray(factor, np.float32))], name)

    def capped(self, x: ir.Value, cap: float, where: str) -> ir.Value:
        if not cap:
            return x
        limit = self.constant(f"{where}.cap", np.asarray(cap, np.float32))
        part = self.op("Tanh", [self.op("Div", [x, limit], f"{where}/part")], f"{where}/tanh")
        return self.op("Mul", [part, limit], f"{where}/capped")

    def cache(self, index: int, a: Attention) -> tuple[ir.Value, ir.Value, ir.Value, ir.Value]:
        shapes = [
            ["batch_size", a.key_heads, n, a.head_size]
            for n in ("past_sequence_length", "total_sequence_length")
        ]
        past = [
            self.input(f"past_key_values.{index}.{n}", ir.DataType.FLOAT, shapes[0]) for n in ("key", "value")
        ]
        present = [self.describe(ir.Value(name=f"present.{index}.{n}"), shapes[1]) for n in ("key", "value")]
        self.outputs += present
        return past[0], past[1], present[0], present[1]

    def input(self, name: str, dtype: ir.DataType, shape: Sequence[int | str]) -> ir.Value:
        value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
        self.inputs.append(value)
        return value

    def describe(self, value: ir.Value, shape: Sequence[int | str]) -> ir.Value:
        value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(shape)
        return value

    def constant(self, name: str, array: Array) -> ir.Value:
        if name not in self.constants:
            tensor = ir.tensor(np.ascontiguousarray(array) if array.ndim else array, name=name)
            self.constants[name] = ir.Value(
                name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape)
            )
        return self.constants[name]

    def op(
        self,
        kind: str,
        inputs: Sequence[ir.Value | None],
        name: str,
        *,
        domain: str = "",
        **attributes: Attributes,
    ) -> ir.Value:
        node = ir.node(
            kind,
            list(inputs),
            attributes=attributes,
            domain=domain,
            outputs=[ir.Value(name=f"{name}:0")],
            name=name,
        )
        self.nodes.append(node)
        return node.outputs[0]


_Sum: TypeAlias = tuple[ir.Value, ir.Value | None]
"""The hidden state as what is still to be added: norms that add do it in one operator."""
