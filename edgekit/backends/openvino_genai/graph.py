"""A decoder as the OpenVINO model that ``openvino_genai.LLMPipeline`` runs: stateful, one graph for prompt and tokens.

Inputs are ``input_ids``, ``attention_mask``, ``position_ids`` and ``beam_idx``; the output is ``logits`` of all
positions, of which the pipeline itself cuts all but the last. Keys and values are variables of the model. The form of
the cache, of rotation and of the masks is the one that OpenVINO recognises: its stateful attention fuses it, and
the pipeline turns it into paged attention
(https://github.com/openvinotoolkit/openvino/tree/master/src/common/transformations/src/transformations/sdpa_to_paged_attention).
Integers are widened by ``(integer - zero) * scale`` right before the product that reads them, which products of the
plug-in do themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from edgekit.quantize.block_weights import BlockWeights, pack

if TYPE_CHECKING:
    from edgekit.load.decoder import Attention, Decoder, Feed, Layer, Linear, Norm
    from edgekit.types import Array

Weights: TypeAlias = Mapping[str, BlockWeights]
"""The integers of products and of the table, by the name of the module; what is not there stays a float."""

Node: TypeAlias = Any
"""An operation of OpenVINO's, whose package has no types here."""

WIDE = "/from-float16"
"""Ends the names of conversions of matrices that are stored as float16."""

_LOWEST = -65504.0
"""Added to a score that does not count: float16's lowest, as caches and scores may be float16."""


def build(decoder: Decoder, weights: Weights, runtime: ModuleType, *, half: bool) -> Any:
    """The ``openvino.Model``; the same decoder gives the same names.

    ``weights`` are of whole modules: a projection that is a part of one takes its rows. ``half``: matrices that are no
    integers are stored as float16. ``runtime`` is the module ``openvino``.
    """
    return _Builder(decoder, weights, runtime, half).model()


class _Builder:
    def __init__(self, decoder: Decoder, weights: Weights, runtime: ModuleType, half: bool) -> None:
        from openvino import opset15

        self.decoder, self.weights, self.half = decoder, weights, half
        self.ov, self.ops = runtime, opset15
        self.constants: dict[str, Node] = {}
        self.widened: dict[str, Node] = {}
        self.masks: dict[int, Node] = {}
        self.inputs: dict[str, Node] = {}
        self.sinks: list[Node] = []

    def model(self) -> Any:
        decoder = self.decoder
        for name, rank in (("input_ids", 2), ("attention_mask", 2), ("position_ids", 2), ("beam_idx", 1)):
            dtype = self.ov.Type.i32 if name == "beam_idx" else self.ov.Type.i64
            self.inputs[name] = self.op(name, "parameter", [-1] * rank, dtype)
            self.inputs[name].output(0).set_names({name})
        self.tables = {name: self.rotary(name) for name in decoder.rotary}
        x = self.embedded()
        for index, layer in enumerate(decoder.layers):
            x = self.layer(layer, index, x)
        logits = self.capped(self.head(self.normed(x, decoder.norm)), decoder.softcap, "head")
        result = self.op("logits", "result", logits)
        result.output(0).set_names({"logits"})
        inputs = [self.inputs[n] for n in ("input_ids", "attention_mask", "position_ids", "beam_idx")]
        return self.ov.Model([result], self.sinks, inputs, "decoder")

    # --- the parts of a model ---------------------------------------------------------------------------

    def rotary(self, name: str) -> tuple[Node, Node]:
        """Cosines and sines ``[batch, 1, tokens, 2 * pairs]`` of the positions."""
        rotary = self.decoder.rotary[name]
        rates = self.constant(
            f"{name}.frequencies", rotary.frequencies.numpy().astype(np.float32)[None, None]
        )
        positions = self.op(f"{name}/positions", "convert", self.inputs["position_ids"], "f32")
        column = self.op(f"{name}/column", "unsqueeze", positions, self.axis(2))
        angles = self.op(f"{name}/angles", "multiply", column, rates)
        both = self.op(f"{name}/both", "concat", [angles, angles], -1)
        found = []
        for kind in ("cos", "sin"):
            table = self.times(self.op(f"{name}/{kind}", kind, both), rotary.factor, f"{name}/{kind}/factor")
            found.append(self.op(f"{name}/{kind}/heads", "unsqueeze", table, self.axis(1)))
        return found[0], found[1]

    def embedded(self) -> Node:
        decoder = self.decoder
        stored = self.weights.get(decoder.embedding_name)
        table = self.matrix("embedding", decoder.embedding.numpy(), stored)
        found = self.op("embedding", "gather", table, self.inputs["input_ids"], self.axis(0))
        return self.times(found, decoder.embedding_factor, "embedding/factor")

    def head(self, x: Node) -> Node:
        decoder = self.decoder
        if decoder.head is not None:
            return self.linear(decoder.head, x, "head")
        stored = self.weights.get(decoder.embedding_name)
        return self.product("embedding", decoder.embedding.numpy(), stored, x, "head")

    def layer(self, layer: Layer, index: int, x: Node) -> Node:
        where = f"layers.{index}"
        inside = self.normed(x, layer.before_attention)
        attended = self.attention(layer.attention, index, inside)
        if layer.parallel:
            fed = self.feed(layer.feed, f"{where}/feed", inside)
            return self.added(x, self.added(attended, fed, f"{where}/both"), f"{where}/sum")
        x = self.added(x, self.normed(attended, layer.after_attention), f"{where}/attention/sum")
        fed = self.feed(layer.feed, f"{where}/feed", self.normed(x, layer.before_feed))
        return self.added(x, self.normed(fed, layer.after_feed), f"{where}/feed/sum")

    def attention(self, a: Attention, index: int, x: Node) -> Node:
        where = f"layers.{index}/attention"
        query = self.turned(
            a, self.heads(a.query, a.query_norm, a.heads, a.head_size, x, f"{where}/query"), "query", where
        )
        key = self.turned(
            a, self.heads(a.key, a.key_norm, a.key_heads, a.head_size, x, f"{where}/key"), "key", where
        )
        value = self.heads(a.value, None, a.key_heads, a.head_size, x, f"{where}/value")
        keys, values = (
            self.repeated(self.cached(new, index, a, name), a, f"{where}/{name}")
            for new, name in ((key, "key"), (value, "value"))
        )
        attended = self.scored(a, query, keys, values, where)
        rows = self.op(f"{where}/rows", "transpose", attended, self.ints("swapped", [0, 2, 1, 3]))
        shape = self.ints(f"joined_{a.heads * a.head_size}", [0, 0, a.heads * a.head_size])
        joined = self.op(f"{where}/joined", "reshape", rows, shape, True)
        return self.linear(a.output, joined, f"{where}/output")

    def heads(self, part: Linear, norm: Norm | None, heads: int, size: int, x: Node, where: str) -> Node:
        """A projection as ``[batch, heads, tokens, size]``; a norm is of each head, or of all: its width says which."""
        found = self.linear(part, x, where)
        if norm is not None and norm.scale.shape[0] != size:
            found, norm = self.normed(found, norm), None
        split = self.op(
            f"{where}/split", "reshape", found, self.ints(f"heads_{heads}", [0, 0, heads, size]), True
        )
        split = self.normed(split, norm)
        return self.op(f"{where}/heads", "transpose", split, self.ints("swapped", [0, 2, 1, 3]))

    def turned(self, a: Attention, x: Node, name: str, where: str) -> Node:
        """Rotated by its positions, in halves; what is beyond the pairs stays as it is."""
        cosines, sines = self.tables[a.rotary]
        pairs = int(self.decoder.rotary[a.rotary].frequencies.shape[0])
        where = f"{where}/{name}/rotary"
        first, second = (self.part(x, s * pairs, (s + 1) * pairs, f"{where}/{s}") for s in (0, 1))
        whole = x
        if 2 * pairs < a.head_size:
            whole = self.part(x, 0, 2 * pairs, f"{where}/whole")
            first, second = (
                self.part(whole, s * pairs, (s + 1) * pairs, f"{where}/{s}/part") for s in (0, 1)
            )
        back = self.op(f"{where}/back", "multiply", second, self.constant("minus", np.float32(-1.0)))
        swapped = self.op(f"{where}/swapped", "concat", [back, first], -1)
        even = self.op(f"{where}/even", "multiply", whole, cosines)
        odd = self.op(f"{where}/odd", "multiply", swapped, sines)
        found = self.added(even, odd, f"{where}/sum")
        if 2 * pairs == a.head_size:
            return found
        rest = self.part(x, 2 * pairs, a.head_size, f"{where}/rest")
        return self.op(f"{where}/all", "concat", [found, rest], -1)

    def cached(self, new: Node, index: int, a: Attention, name: str) -> Node:
        """All keys or values so far, which the variable holds from now on."""
        where = f"layers.{index}/cache/{name}"
        start = self.op(f"{where}/start", "broadcast", self.constant("zero", np.float32(0.0)), self.empty(a))
        variable = self.variable(f"past_key_values.{index}.{name}", [-1, a.key_heads, -1, a.head_size])
        known = self.op(f"{where}/read", "read_value", start, variable)
        chosen = self.op(f"{where}/beams", "gather", known, self.inputs["beam_idx"], self.axis(0))
        whole = self.op(f"{where}/whole", "concat", [chosen, new], 2)
        self.sinks.append(self.op(f"{where}/write", "assign", whole, variable))
        return whole

    def variable(self, name: str, sizes: Sequence[int]) -> Any:
        from openvino.op.util import Variable, VariableInfo

        info = VariableInfo()
        info.variable_id, info.data_type = name, self.ov.Type.f32
        info.data_shape = self.ov.PartialShape(list(sizes))
        return Variable(info)

    def empty(self, a: Attention) -> Node:
        """The shape of a cache without tokens."""
        name = f"empty_{a.key_heads}_{a.head_size}"
        if name not in self.constants:
            shape = self.op(f"{name}/of", "shape_of", self.inputs["input_ids"], "i64")
            batch = self.op(f"{name}/batch", "gather", shape, self.ints("first", [0]), self.axis(0))
            rest = self.ints(f"{name}.rest", [a.key_heads, 0, a.head_size])
            self.constants[name] = self.op(name, "concat", [batch, rest], 0)
        return self.constants[name]

    def repeated(self, x: Node, a: Attention, where: str) -> Node:
        """One copy a query head."""
        times = a.heads // a.key_heads
        if times == 1:
            return x
        apart = self.op(f"{where}/apart", "unsqueeze", x, self.axis(2))
        shape = self.ints(f"repeat_{times}", [1, 1, times, 1, 1])
        copies = self.op(f"{where}/copies", "broadcast", apart, shape, None, "bidirectional")
        return self.op(
            f"{where}/all",
            "reshape",
            copies,
            self.ints(f"all_{a.heads}_{a.head_size}", [0, a.heads, -1, a.head_size]),
            True,
        )

    def scored(self, a: Attention, query: Node, keys: Node, values: Node, where: str) -> Node:
        mask = self.mask(a.window)
        scale = self.constant(f"scale_{a.scale}", np.float32(a.scale))
        if not a.softcap:
            return self.op(where, "scaled_dot_product_attention", query, keys, values, mask, scale)
        products = self.op(f"{where}/products", "matmul", query, keys, False, True)
        scores = self.capped(self.op(f"{where}/scores", "multiply", products, scale), a.softcap, where)
        shares = self.op(f"{where}/shares", "softmax", self.added(scores, mask, f"{where}/masked"), -1)
        return self.op(where, "matmul", shares, values, False, False)

    def mask(self, window: int) -> Node:
        """``[batch, 1, tokens, all tokens]``: what is added to scores. A sliding one has the form in which paged
        attention recognises its window: ``key > query - window`` as the second of three conditions."""
        if window in self.masks:
            return self.masks[window]
        where = f"mask_{window}"
        given = self.inputs["attention_mask"]
        new, whole = (
            self.op(
                f"{where}/{n}",
                "gather",
                self.op(f"{where}/{n}/shape", "shape_of", x, "i64"),
                self.axis(1),
                self.axis(0),
            )
            for n, x in (("new", self.inputs["input_ids"]), ("whole", given))
        )
        one = self.constant("one", np.int64(1))
        before = self.op(f"{where}/before", "subtract", whole, new)
        queries = self.op(f"{where}/queries", "range", before, whole, one, "i64")
        queries = self.op(f"{where}/queries/column", "unsqueeze", queries, self.ints("columns", [0, 1, 3]))
        keys = self.op(f"{where}/keys", "range", self.constant("none", np.int64(0)), whole, one, "i64")
        keys = self.op(f"{where}/keys/row", "unsqueeze", keys, self.ints("rows", [0, 1, 2]))
        seen = self.op(f"{where}/seen", "less_equal", keys, queries)
        counted = self.op(f"{where}/counted", "convert", given, "boolean")
        counted = self.op(f"{where}/counted/row", "unsqueeze", counted, self.ints("middle", [1, 2]))
        if window:
            last = self.added(queries, self.constant(f"{where}.offset", np.int64(-window)), f"{where}/last")
            near = self.op(f"{where}/near", "greater", keys, last)
            yes = self.constant("yes", np.asarray(True))
            near = self.op(f"{where}/near/all", "bitwise_and", yes, near)
            seen = self.op(f"{where}/near/seen", "bitwise_and", near, seen)
            seen = self.op(f"{where}/near/seen/all", "bitwise_and", yes, seen)
        both = self.op(f"{where}/both", "bitwise_and", seen, counted)
        if window:
            both = self.op(
                f"{where}/one", "broadcast", both, self.ints("ones", [1, 1, 1, 1]), None, "bidirectional"
            )
        zero, lowest = self.constant("zero", np.float32(0.0)), self.constant("lowest", np.float32(_LOWEST))
        found = self.op(where, "select", both, zero, lowest)
        if window:
            end = self.constant("end", np.asarray([np.iinfo(np.int64).max]))
            found = self.op(
                f"{where}/cut",
                "slice",
                found,
                self.ints("first", [0]),
                end,
                self.ints("step", [1]),
                self.ints("last", [3]),
            )
        self.masks[window] = found
        return found

    def feed(self, f: Feed, where: str, x: Node) -> Node:
        if f.gate is None:
            hidden = self.activated(f.activation, self.linear(f.up, x, f"{where}/up"), where)
        else:
            gate = self.activated(f.activation, self.linear(f.gate, x, f"{where}/gate"), where)
            hidden = self.op(f"{where}/gated", "multiply", gate, self.linear(f.up, x, f"{where}/up"))
        return self.linear(f.down, hidden, f"{where}/down")

    def activated(self, name: str, x: Node, where: str) -> Node:
        if name == "silu":
            return self.op(f"{where}/silu", "swish", x)
        if name == "relu":
            return self.op(f"{where}/relu", "relu", x)
        return self.op(f"{where}/gelu", "gelu", x, "tanh" if name == "gelu-tanh" else "erf")

    def normed(self, x: Node, norm: Norm | None) -> Node:
        if norm is None:
            return x
        scale = self.constant(f"{norm.name}.scale", norm.scale.numpy())
        if norm.centred:
            plain = self.op(
                f"{norm.name}/plain", "mvn", x, self.ints("at_-1", [-1]), True, norm.epsilon, "inside_sqrt"
            )
            scaled = self.op(f"{norm.name}/scaled", "multiply", plain, scale)
            if norm.bias is None:
                return scaled
            return self.added(scaled, self.constant(f"{norm.name}.bias", norm.bias.numpy()), norm.name)
        square = self.op(f"{norm.name}/square", "power", x, self.constant("two", np.float32(2.0)))
        mean = self.op(f"{norm.name}/mean", "reduce_mean", square, self.axis(-1), True)
        epsilon = self.constant(f"epsilon_{norm.epsilon}", np.float32(norm.epsilon))
        root = self.op(f"{norm.name}/root", "sqrt", self.added(mean, epsilon, f"{norm.name}/above"))
        share = self.op(f"{norm.name}/share", "divide", self.constant("one_f", np.float32(1.0)), root)
        return self.op(norm.name, "multiply", scale, self.op(f"{norm.name}/plain", "multiply", x, share))

    # --- products ---------------------------------------------------------------------------------------

    def linear(self, part: Linear, x: Node, where: str) -> Node:
        stored = self.weights.get(part.name)
        if stored is not None and part.rows is not None:
            stored = stored.selected(slice(*part.rows))
        name = part.name if part.rows is None else f"{part.name}.{part.rows[0]}"
        found = self.product(name, part.weight.numpy(), stored, x, where)
        if part.bias is None:
            return found
        return self.added(found, self.constant(f"{name}.bias", part.bias.numpy()), f"{where}/bias")

    def product(self, name: str, weight: Array, stored: BlockWeights | None, x: Node, where: str) -> Node:
        return self.op(where, "matmul", x, self.matrix(name, weight, stored), False, True)

    def matrix(self, name: str, weight: Array, stored: BlockWeights | None) -> Node:
        """``[outputs, inputs]`` in float32, whatever it is stored as."""
        if name in self.widened:
            return self.widened[name]
        if stored is None:
            found = self.constant(name, weight.astype(np.float16) if self.half else weight)
            if self.half:
                found = self.op(f"{name}{WIDE}", "convert", found, "f32")
        else:
            found = self.integers(name, stored)
        self.widened[name] = found
        return found

    def integers(self, name: str, stored: BlockWeights) -> Node:
        """``(integer - zero) * scale`` in float16, as the plug-in's patterns have it, then float32."""
        stored = _with_scales(stored)
        outputs, inputs = stored.shape
        blocks = stored.scales.shape[1]
        if blocks * stored.block != inputs:
            raise ValueError(f"{name} has {inputs} inputs, no whole blocks of {stored.block}")
        shape, thin = [outputs, blocks, stored.block], [outputs, blocks, 1]
        if blocks == 1:
            shape, thin = [outputs, inputs], [outputs, 1]
        signed = stored.zeros is None and stored.offsets is None
        kind = f"{'i' if signed else 'u'}{stored.bits}"
        flip = {4: 0x88, 8: 0x80}[stored.bits] if signed else 0
        packed = stored.packed() ^ np.uint8(flip)
        whole = self.op(
            f"{name}/wide", "convert", self.packed(f"{name}.integers", packed, kind, shape), "f16"
        )
        if stored.offsets is not None:
            zeros = stored.middle - stored.offsets / stored.scales
            whole = self.op(
                f"{name}/centred",
                "subtract",
                whole,
                self.constant(f"{name}.zeros", zeros.astype(np.float16).reshape(thin)),
            )
        elif stored.zeros is not None:
            zero = self.packed(f"{name}.zeros", _flat(stored.zeros, stored.bits), kind, thin)
            whole = self.op(
                f"{name}/centred", "subtract", whole, self.op(f"{name}.zeros/wide", "convert", zero, "f16")
            )
        scales = self.constant(f"{name}.scales", stored.scales.astype(np.float16).reshape(thin))
        whole = self.op(f"{name}/scaled", "multiply", whole, scales)
        if blocks > 1:
            whole = self.op(
                f"{name}/rows",
                "reshape",
                whole,
                self.ints(f"rows_{outputs}_{inputs}", [outputs, inputs]),
                False,
            )
        return self.op(f"{name}/float", "convert", whole, "f32")

    # --- the graph itself -------------------------------------------------------------------------------

    def times(self, x: Node, factor: float, name: str) -> Node:
        if factor == 1.0:
            return x
        return self.op(name, "multiply", x, self.constant(f"{name}.value", np.float32(factor)))

    def capped(self, x: Node, cap: float, where: str) -> Node:
        if not cap:
            return x
        limit = self.constant(f"cap_{cap}", np.float32(cap))
        part = self.op(f"{where}/tanh", "tanh", self.op(f"{where}/part", "divide", x, limit))
        return self.op(f"{where}/capped", "multiply", part, limit)

    def part(self, x: Node, start: int, stop: int, name: str) -> Node:
        """``x[..., start:stop]``."""
        edges = (self.ints(f"at_{n}", [n]) for n in (start, stop, 1))
        return self.op(name, "slice", x, *edges, self.ints("at_-1", [-1]))

    def added(self, a: Node, b: Node, name: str) -> Node:
        return self.op(name, "add", a, b)

    def axis(self, axis: int) -> Node:
        return self.constant(f"axis_{axis}", np.int64(axis))

    def ints(self, name: str, values: Sequence[int]) -> Node:
        return self.constant(name, np.asarray(values, np.int64))

    def constant(self, name: str, array: Array | np.generic) -> Node:
        if name not in self.constants:
            self.constants[name] = self.op(name, "constant", np.asarray(array))
        return self.constants[name]

    def packed(self, name: str, data: Array, kind: str, shape: Sequence[int]) -> Node:
        """Integers of ``kind`` from the bytes that hold them."""
        if name not in self.constants:
            tensor = self.ov.Tensor(
                np.ascontiguousarray(data).reshape(-1), list(shape), getattr(self.ov.Type, kind)
            )
            self.constants[name] = self.op(name, "constant", tensor, False)  # a copy: the bytes go
        return self.constants[name]

    def op(self, name: str, kind: str, *inputs: Any) -> Node:
        node = getattr(self.ops, kind)(*inputs)
        node.set_friendly_name(name)
        return node


def _with_scales(stored: BlockWeights) -> BlockWeights:
    """Where real offsets are beside scales of zero, the block is one number: its scale is that number."""
    if stored.offsets is None or stored.scales.all():
        return stored
    flat = stored.scales == 0
    integers = stored.integers.copy()
    integers[np.repeat(flat, stored.block, axis=1)[:, : integers.shape[1]]] = stored.middle
    scales = np.where(flat, np.where(stored.offsets == 0, 1.0, stored.offsets), stored.scales)
    return replace(stored, integers=integers, scales=scales)


def _flat(integers: Array, bits: int) -> Array:
    """All integers one after the other in bytes, whatever their rows are."""
    values = integers.reshape(-1)
    return pack(np.pad(values, (0, values.size % (8 // bits))), bits)
