"""Placement tables: for each runtime, what it computes on integers and what it expects around an operator.

The tables are data; each backend has its own (``backends/*/rules.py``). A scheme names one by ``Scheme.rules``.
What is not in a table stays float.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from edgekit.core import plugins
from edgekit.errors import PluginError
from edgekit.graph import ops
from edgekit.graph.ops import Trait


@dataclass(frozen=True, kw_only=True)
class OpRule:
    """How one operator is treated.

    ``force``: worth quantizing whatever comes before; otherwise it follows: it is quantized where all of its inputs
    come from integers.
    ``produces_integer``: its kernel always stores integers, so its output gets Q/DQ even if only float operators read
    it.
    ``propagates``: operators behind it may follow.
    ``same_scale``: output and input share one scale.
    ``fixed``: the output's range, whatever was calibrated; its scale is ``(high - low) / 2**bits``, as TFLite's kernels
    insist.
    ``fuses_sum``: a residual addition that runtimes fuse into one of its convolutions, whose output stays unquantized.
    ``constant``: the operator is quantized only with constant weights in its second input.
    ``symmetric_inputs``: without constant weights, both inputs have to be INT8 with zero point 0.
    ``symmetric_second``: without constant weights the second input has to have zero point 0; what it shares a scale
    with then has it, too, so that nothing is rounded twice.
    """

    force: bool = False
    produces_integer: bool = False
    propagates: bool = True
    same_scale: bool = False
    fuses_sum: bool = False
    constant: bool = False
    symmetric_inputs: bool = False
    symmetric_second: bool = False
    fixed: tuple[float, float] | None = None


class Recurrent(StrEnum):
    """How a runtime reads the weights of recurrent layers."""

    FLOAT = "float"
    """Nobody tried it with integers."""
    MULTIPLIED = "multiplied"
    """Integers behind DequantizeLinear: the runtime multiplies them, with activations quantized on every step."""
    WIDENED = "widened"
    """Integers behind Cast and Div, which ONNX Runtime and OpenVINO compute once, when they load the file. ONNX Runtime
    computes a DequantizeLinear on every run; OpenVINO keeps one as it is, and its layers refuse weights that are no
    constants."""


@dataclass(frozen=True, kw_only=True)
class Rules:
    """A runtime's table. ``requantize_same_scale``: operators that share a scale need Q/DQ behind them too.
    ``full_integer``: everything that can be is quantized, from the graph's inputs to its outputs; otherwise only
    what lies between the operators worth it.

    ``embedding`` says how large constant tables read by Gather are stored: ``rows`` (INT8 with a scale a
    row) or ``float``. ``hybrid``: a fully connected layer whose result only float operators read keeps integer
    weights alone; the runtime quantizes its input anew on every run, row by row, and gives floats. A static
    result would be rounded to a scale for the whole tensor only to be dequantized at once, which is where
    transformers lose most: the residual stream has a few channels that are far larger than the rest.
    ``islands``: operators without weights go back to float where integers would only round
    (:mod:`edgekit.quantize.islands`).
    ``int16``: single layers can have INT16 activations among INT8 ones.

    ``recurrent``: the form in which the weights of LSTM, GRU and RNN are stored.
    """

    name: str
    ops: Mapping[str, OpRule]
    requantize_same_scale: bool = True
    full_integer: bool = False
    embedding: str = "float"
    hybrid: bool = False
    islands: bool = False
    int16: bool = False
    recurrent: Recurrent = Recurrent.FLOAT


CARRIERS = ops.named(Trait.CARRIES) - {
    "Concat",  # takes several tensors: some kernels want one scale of all, some rescale each
    "GatherElements",  # no runtime here has it in integers
    "Dropout",  # is not in an optimized graph
}
SAME_SCALE = OpRule(same_scale=True)
INTEGER = OpRule(produces_integer=True)
UNIT = (0.0, 1.0)
"""What several tables say."""


def table(name: str) -> Rules:
    """The table of a scheme: from the module that a plug-in names for it, out of its mapping ``RULES``.

    Raises :class:`UnknownNameError`, and :class:`PluginError` where the module has no such table.
    """
    tables = getattr(plugins.module("rules", name), "RULES", {})
    rules = tables.get(name)
    if not isinstance(rules, Rules):
        raise PluginError(
            f"the module of the placement rules {name!r} has no such table",
            hint="its RULES maps names to edgekit.quantize.rules.Rules",
        )
    return rules
