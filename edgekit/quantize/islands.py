"""Where integers would only round: operators without weights around products that read and give floats anyway.

A runtime that computes all that it can on integers rounds every intermediate result of a residual stream, of a
recurrent cell or of a grid of coordinates to eight bits. No weight is read there and little time is spent: what is
lost is precision. These operators go back to float, and the products before them give floats
(:attr:`edgekit.quantize.rules.Rules.hybrid`). What is between convolutions stays on integers: feature maps are large.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence, Set

import onnx_ir as ir

from edgekit.graph import ops
from edgekit.graph.ops import Trait
from edgekit.quantize.blocks import Block, attribute
from edgekit.quantize.options import Cause, InFloat
from edgekit.quantize.rules import OpRule

_PRODUCTS = ops.named(Trait.MULTIPLIES_MATRICES)
_EXACT = (ops.named(Trait.CARRIES) | {"ReduceMax", "ReduceMin"}) - {"Concat"}
"""Operators that give values of their one input: nothing is rounded by them. A concatenation's inputs get one scale."""
_ISLAND = InFloat(Cause.ISLAND, "only float operators read it, or products: integers would only round it")

_QUOTIENT = InFloat(Cause.ISLAND, "a quotient is made of it: eight bits hold no small divisor")

_SMALL = InFloat(
    Cause.ISLAND, "what it reads and what reads it is float, and so small a product is quicker so"
)
_WORTH = 24
"""Multiply-accumulates for each element read and written from which integers are worth two roundings and the way back.
XNNPACK on x86 with VNNI, matrices of 5 x 16 to 512 x 128: float is quicker up to 21, integers from 39 on."""


class _Islands:
    def __init__(
        self,
        blocks: Sequence[Block],
        readers: Mapping[ir.Value, Sequence[Block]],
        rule: Callable[[Block], OpRule],
        in_float: dict[Block, InFloat],
        fixed: frozenset[Block],
    ) -> None:
        self.blocks, self.readers, self.rule = blocks, readers, rule
        self.in_float, self.fixed = in_float, fixed
        self.producer = {o: b for b in blocks for o in b.outputs}
        self.small = _behind_products(blocks)

    def leave(self) -> None:
        """Backwards, so that a block knows what became of those that read it; then what carries floats to floats."""
        layers = any(self._is_integer(b) and b.weight is not None for b in self.blocks)
        for block in reversed(self.blocks):
            if not self._is_integer(block) or _is_exact(block):
                continue
            if self.rule(block).force:
                if layers and self._is_divided(block):
                    self.in_float[block] = _QUOTIENT
                continue
            readers = self._readers_of(block)
            if self._are_floats(readers) or self._lead_to_products(block, readers):
                self.in_float[block] = _ISLAND
        for block in (
            self.blocks if layers else ()
        ):  # without layers the product is what was to be in integers
            if self._is_integer(block) and self._is_small_product(block):
                self.in_float[block] = _SMALL
        for block in self.blocks:
            if self._is_integer(block) and _is_exact(block) and self._carries_floats(block):
                self.in_float[block] = _ISLAND

    def _is_small_product(self, block: Block) -> bool:
        """A product of two activations that are float, for float operators, for which the way into integers and out
        again takes longer than integers save."""
        if not _multiplies_activations(block) or not self._are_floats(self._readers_of(block)):
            return False
        values = (*block.activations, *block.outputs)
        elements = sum(math.prod(d for d in v.shape or () if isinstance(d, int)) for v in values)
        return block.macs < _WORTH * elements and all(self._is_float(v) for v in block.activations)

    def _is_float(self, value: ir.Value) -> bool:
        source = self.producer.get(value)
        if source is None or source in self.in_float:
            return True
        return _is_exact(source) and self._is_float(source.activations[0])

    def _is_divided(self, block: Block) -> bool:
        """A product of two activations that a quotient of two tensors is made of (linear attention): the smallest
        divisors would have a bit or two. So would a product of which the divided one is made: sums of keys, and of
        keys times values, in one tensor."""
        return _multiplies_activations(block) and self._in_a_quotient(block)

    def _in_a_quotient(self, block: Block) -> bool:
        return any(
            _divides(r)
            or ((_is_exact(r) or _shifts(r) or _multiplies_activations(r)) and self._in_a_quotient(r))
            for o in block.outputs
            for r in self.readers.get(o, ())
        )

    def _is_integer(self, block: Block) -> bool:
        return block not in self.in_float and block not in self.fixed

    def _readers_of(self, block: Block) -> list[Block | None]:
        """The blocks that compute on a block's result, carried or not; ``None`` for the app that reads it."""
        found: list[Block | None] = []
        for output in block.outputs:
            if output.is_graph_output():
                found.append(None)
            for reader in self.readers.get(output, ()):
                exact = reader not in self.in_float and _is_exact(reader)
                found += self._readers_of(reader) if exact else [reader]
        return found

    def _are_floats(self, readers: Sequence[Block | None]) -> bool:
        """An activation that is float for want of an integer kernel rounds what it gives anyway."""
        return bool(readers) and all(
            r is None or (r in self.in_float and not ops.has(r.core, Trait.ACTIVATION)) for r in readers
        )

    def _lead_to_products(self, block: Block, readers: Sequence[Block | None]) -> bool:
        """What comes from products and goes to layers, where floats are rounded once, or to what is float."""
        return block in self.small and all(
            r is None or r in self.in_float or self.rule(r).force for r in readers
        )

    def _carries_floats(self, block: Block) -> bool:
        """Of the model's inputs only what no integers read."""
        source = self.producer.get(block.activations[0])
        floats = [r is None or r in self.in_float for r in self._readers_of(block)]
        return all(floats) if source is None else source in self.in_float and any(floats)


def leave_islands(
    blocks: Sequence[Block],
    readers: Mapping[ir.Value, Sequence[Block]],
    rule: Callable[[Block], OpRule],
    in_float: dict[Block, InFloat],
    fixed: frozenset[Block] = frozenset(),
) -> None:
    """Put back to float, in ``in_float``, what gains nothing by integers; ``fixed`` are blocks to leave alone."""
    _Islands(blocks, readers, rule, in_float, fixed).leave()


def _multiplies_activations(block: Block) -> bool:
    return block.op == "MatMul" and block.weight is None


def _divides(block: Block) -> bool:
    return block.op == "Div" and len(block.activations) == 2


def _shifts(block: Block) -> bool:
    return block.op == "Add" and len(block.activations) == 1


def _is_exact(block: Block) -> bool:
    if block.op == "Resize":
        return bool(attribute(block.core, "mode", "nearest") == "nearest")
    return block.op in _EXACT


def _behind_products(blocks: Sequence[Block]) -> frozenset[Block]:
    """The blocks whose every input comes from a product of matrices, through blocks of the same kind; of an addition
    one of the operands is enough: it is the residual stream of a transformer."""
    values: set[ir.Value] = set()
    found: set[Block] = set()
    for block in blocks:
        computed = block.op not in _PRODUCTS and block.weight is None
        if computed and block.activations and _derived(block, values):
            found.add(block)
        if block in found or block.op in _PRODUCTS:
            values.update(block.outputs)
    return frozenset(found)


def _derived(block: Block, values: Set[ir.Value]) -> bool:
    if block.op == "Add":
        shape = block.outputs[0].shape
        return any(v in values and v.shape == shape for v in block.activations)
    return all(v in values for v in block.activations)
