"""Which fully connected layers have integer weights, and read and give floats (:attr:`Rules.hybrid`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import onnx_ir as ir

from edgekit.graph import ops
from edgekit.graph.ops import Trait
from edgekit.quantize.blocks import Block
from edgekit.quantize.calibrate.calibration import Calibration
from edgekit.quantize.fronts import small_share
from edgekit.quantize.options import InFloat

_PRODUCTS = ops.named(Trait.MULTIPLIES_MATRICES)
_EVEN = 0.2
"""How much of a tensor may be within four steps of zero where eight bits are enough for it: twice what a normal
distribution has there."""


class Hybrid:
    """``blocks`` in order; those of ``in_float`` are float; ``carries`` says whether a block only hands its input on
    with its scale; ``outputs``: the model's outputs are read as float."""

    def __init__(
        self,
        blocks: Sequence[Block],
        readers: Mapping[ir.Value, Sequence[Block]],
        in_float: Mapping[Block, InFloat],
        carries: Callable[[Block], bool],
        *,
        outputs: bool,
    ) -> None:
        self.blocks, self.readers, self.in_float = blocks, readers, in_float
        self.carries, self.outputs = carries, outputs
        self.producer = {o: b for b in blocks for o in b.outputs}
        self.last = _last(blocks, readers)
        self.found: set[Block] = set()
        self.between: list[Block] = []

    def find(self, dtypes: Mapping[Block, str], calibration: Calibration) -> None:
        """Fill ``found``, and ``between`` with what only carries their results: it is float then, too."""
        for block in reversed(self.blocks):
            if not self._is_layer(block) or dtypes[block] != "int8":
                continue
            between = self._carried_to_float(block)
            if between is not None and not self._is_second(block, calibration):
                self.found.add(block)
                self.between += between

    def _is_integer(self, block: Block) -> bool:
        return block not in self.in_float and block not in self.between

    def _is_layer(self, block: Block) -> bool:
        return block.op in _PRODUCTS and block.weight is not None and self._is_integer(block)

    def _carried_to_float(self, block: Block) -> list[Block] | None:
        """The quantized blocks that carry a block's result to float readers; ``None`` if it goes anywhere else."""
        found: list[Block] = []
        for output in block.outputs:
            readers = self.readers.get(output, [])
            if output.is_graph_output() and not self.outputs:
                return None
            if not output.is_graph_output() and not readers:
                return None
            for reader in readers:
                if not self._is_integer(reader) or reader in self.found:
                    continue
                further = self._carried_to_float(reader) if self.carries(reader) else None
                if further is None:
                    return None
                found += [reader, *further]
        return found

    def _is_second(self, block: Block, calibration: Calibration) -> bool:
        """Whether a layer that reads another's integers gives integers as well, which is quicker: two feed-forward
        layers with the activation fused between them. Not where its values are uneven (a few large channels), nor for
        the last ones."""
        source = self.producer.get(block.activations[0])
        name = block.outputs[0].name or ""
        if source is None or not self._is_layer(source) or name not in calibration:
            return False
        readers = [r for o in block.outputs for r in self.readers.get(o, ())]
        if all(r in self.found for r in readers) or block in self.last:
            return False
        return small_share(calibration.statistics(name), 8) < _EVEN


def _last(blocks: Sequence[Block], readers: Mapping[ir.Value, Sequence[Block]]) -> frozenset[Block]:
    """The blocks that no layer comes behind."""
    before: set[Block] = set()
    for block in reversed(blocks):
        behind = (r for o in block.outputs for r in readers.get(o, ()))
        if any(r.weight is not None or r in before for r in behind):
            before.add(block)
    return frozenset(blocks) - before
