"""The step ``qat``, quantization-aware training: the network learns with the integers that it will run on.

Weights and what each layer reads are rounded in the forward pass; gradients pass through (Bengio et al. 2013), and
the steps are learnt with the weights (LSQ: Esser et al. 2020, arXiv 1902.08153) or stay where calibration put them.
The result holds integers; exported, it is ONNX with QuantizeLinear and DequantizeLinear, integer weights in the
file, which ``edgekit build`` lowers with the ranges that were trained (:mod:`edgekit.quantize.trained`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from edgekit.compress.step import Step, choice
from edgekit.compress.steps import patterns
from edgekit.compress.training.settings import Training
from edgekit.errors import ConfigError

STEPS = ("learned", "fixed")
RANGES = ("mse", "minmax", "percentile")
BATCH_NORM = ("fold", "freeze", "train")


@dataclass(frozen=True, kw_only=True)
class Qat(Step):
    """Quantize linear and convolution layers, and train them so.

    ``weights``: 2 to 8 bits, symmetric, stored as INT4 or INT8. ``activations``: 8, 16 or 0 (float).
    ``layers``: other bits for single layers, ``"conv1=8,head*=8/16,tail=0"``: of the weights, or weights/activations;
    0 leaves a layer float. ``per_channel``: a step for each output channel, else one a layer. ``symmetric``: zero
    points of 0, as TensorRT wants them. ``steps``: ``learned`` or ``fixed``. ``range``: where steps start: ``mse``,
    ``minmax``, ``percentile`` of the first ``batches`` training batches. ``batch_norm``: ``fold`` into the weights
    before training; or train with it in place, its statistics held (``freeze``) or going on (``train``), and fold it
    into the scales in the end. Without training this is quantization after training; ``refit``: weights are then
    rounded up or down so that each layer's outputs stay near on ``batches``, not each to its nearest.
    """

    NAME: ClassVar[str] = "qat"
    IMPLEMENTATION: ClassVar[str] = "edgekit.compress.steps.qat_training"

    weights: int = 8
    activations: int = 8
    layers: str = ""
    per_channel: bool = True
    symmetric: bool = False
    steps: str = "learned"
    range: str = "mse"
    batch_norm: str = "fold"
    batches: int = 8
    refit: bool = True
    training: Training = field(default_factory=lambda: Training(epochs=0.0))

    def __post_init__(self) -> None:
        if not 2 <= self.weights <= 8 or self.activations not in (0, 8, 16):
            raise ConfigError(
                f"qat with {self.weights} bits for weights and {self.activations} for activations",
                hint="weights: 2 to 8; activations: 8, 16, or 0 to leave them float",
            )
        choice(self.NAME, "steps", self.steps, STEPS)
        choice(self.NAME, "range", self.range, RANGES)
        choice(self.NAME, "batch_norm", self.batch_norm, BATCH_NORM)
        if self.batches < 1:
            raise ConfigError(f"qat with {self.batches} batches for the ranges", hint="1 or more")
        if not self.per_channel and self.batch_norm != "fold":
            raise ConfigError(
                f"batch_norm={self.batch_norm} ends in a scale a channel, and per_channel is false",
                hint="use batch_norm=fold",
            )
        parse_bits(self.layers)


STEP = Qat


def parse_bits(text: str) -> list[tuple[str, tuple[int, int | None]]]:
    """``"conv1=8,head*=8/16"`` to pairs of a pattern and (weights, activations). Raises ``ConfigError``."""

    def bits(value: str) -> tuple[int, int | None]:
        weights, slash, activations = value.partition("/")
        fits = weights.isdigit() and (int(weights) == 0 or 2 <= int(weights) <= 8)
        if not fits or (slash and activations not in ("0", "8", "16")):
            raise ValueError(value)
        return int(weights), int(activations) if slash else None

    hint = "write NAME=WEIGHTS or NAME=WEIGHTS/ACTIVATIONS"
    return patterns.rules(text, bits, what="its bits", hint=hint)
