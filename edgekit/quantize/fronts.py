"""A spectral front end inside the model stays float: what is squared, summed and then taken the logarithm of.

A logarithm, or a root, makes its small inputs as large as its big ones. Energies of sound span six decades; eight bits
of them hold two and a half, and those of the waveform's transform before they are squared hold even less. What lies
between the waveform and that operator holds a transform and a filter bank, no learned features: it is computed in
float, as the runtimes' own front ends are, and so is what only scales its result (decibels, a mean taken away).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from edgekit.graph import ops
from edgekit.graph.ops import Trait
from edgekit.quantize.blocks import Block, constant, is_constant
from edgekit.quantize.calibrate.calibration import Calibration, TensorStatistics
from edgekit.quantize.options import Cause, InFloat

STEPS = 4
"""Values below so many steps are rounded by an eighth of themselves, or more."""
SHARE = 0.1
"""How much of a tensor may be as small as that."""
_LEARNED = (ops.named(Trait.ACTIVATION) - ops.named(Trait.CLIPS)) | {
    "Sigmoid",
    "Tanh",
    "Softmax",
    "LogSoftmax",
    "Erf",
    "MaxPool",
    "LayerNormalization",
    "InstanceNormalization",
    "GroupNormalization",
    "RMSNormalization",
    "LSTM",
    "GRU",
    "RNN",
    "Loop",
    "If",
    "Scan",
}
"""What networks are made of and transforms are not."""


def fronts(
    blocks: Sequence[Block], calibration: Calibration | None, *, bits: int = 8
) -> tuple[dict[Block, InFloat], tuple[str, ...]]:
    """The blocks that belong to front ends, with the reason, and notes: one for each operator that ends one.

    ``bits`` are those of the activations; without a ``calibration``, where every run has ranges of its own, energies
    are taken to span decades.
    """
    producer = {o: b for b in blocks for o in b.outputs}
    front: dict[Block, Block] = {}
    notes = []
    for block in blocks:
        if not _expands(block) or not _spans_decades(block.activations[0], calibration, bits):
            continue
        before = _from_inputs(block, producer)
        if before is not None and any(_is_energy(b) for b in before):
            front.update(dict.fromkeys((*before, block), block))
            notes.append(
                f"a front end stays float: {block.op} {block.name} reads energies that {bits} bits cannot hold "
                f"({len(before)} operators before it)"
            )
    _scaled_behind(blocks, producer, front)
    reasons = {b: f"part of a front end: {end.op} makes its small values large" for b, end in front.items()}
    return {b: InFloat(Cause.FRONT, why) for b, why in reasons.items()}, tuple(notes)


def _expands(block: Block) -> bool:
    """Whether small inputs of a block become as large as big ones: a logarithm, or a power between 0 and 1."""
    if not block.activations:
        return False
    if block.op == "Log":
        return True
    if block.op != "Pow":
        return False
    exponent = constant(block.core.inputs[1]) if block.core.inputs[1] is not None else None
    return exponent is not None and exponent.size == 1 and 0.0 < float(exponent.reshape(-1)[0]) < 1.0


def _spans_decades(value: ir.Value, calibration: Calibration | None, bits: int) -> bool:
    if calibration is None or value.name not in calibration:
        return True
    return small_share(calibration.statistics(value.name or ""), bits) >= SHARE


def small_share(statistics: TensorStatistics, bits: int) -> float:
    """The share of values, 0 to 1, that are less than :data:`STEPS` steps of so many bits away from zero."""
    step = (max(statistics.high, 0.0) - min(statistics.low, 0.0)) / (2**bits - 1)
    edges, counts = statistics.histogram.bins()
    if counts.size == 0:
        return 0.0
    centres = (edges[:-1] + edges[1:]) / 2
    return float(counts[np.abs(centres) < STEPS * step].sum() / counts.sum())


def _from_inputs(root: Block, producer: Mapping[ir.Value, Block]) -> list[Block] | None:
    """All blocks that ``root`` computes from, or ``None`` where there is a learned layer among them.

    A Relu is one where something weighted reads what it leaves; else it is the floor under a logarithm.
    """
    behind_weight: dict[Block, bool] = {}
    waiting = [(root, False)]
    while waiting:
        block, weighted = waiting.pop()
        if block is not root:
            if block.op in _LEARNED or (weighted and _is_rectifier(block)):
                return None
            if behind_weight.get(block, not weighted) == weighted or behind_weight.get(block, False):
                continue
            behind_weight[block] = weighted
        weighted = weighted or block.weight is not None
        waiting += [(producer[v], weighted) for v in block.core.inputs if v is not None and v in producer]
    return list(behind_weight)


def _is_rectifier(block: Block) -> bool:
    return block.clip is not None or ops.has(block.core, Trait.CLIPS)


def _is_energy(block: Block) -> bool:
    """Whether a block makes magnitudes of what it reads: a square, an absolute value."""
    if block.op in ("Abs", "ReduceL2", "ReduceSumSquare", "ReduceL1"):
        return True
    if block.op == "Mul":
        first, second = block.core.inputs[:2]
        return first is second
    if block.op != "Pow" or block.core.inputs[1] is None:
        return False
    exponent = constant(block.core.inputs[1])
    return exponent is not None and exponent.size == 1 and float(exponent.reshape(-1)[0]) == 2.0


def _scaled_behind(
    blocks: Sequence[Block], producer: Mapping[ir.Value, Block], front: dict[Block, Block]
) -> None:
    """Add what holds no weights and reads nothing but ``front``: decibels, a level taken away, a deviation."""
    for block in blocks:
        if block in front or block.weight is not None or block.op in _LEARNED or not block.activations:
            continue
        computed = [v for v in block.core.inputs if v is not None and not is_constant(v)]
        makers = [producer.get(v) for v in computed]
        if all(m is not None and m in front for m in makers):
            front[block] = next(front[m] for m in makers if m is not None)
