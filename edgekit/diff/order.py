"""Which of two models is the reference: the finer one, whatever the order in which they are named.

What a layer may lose is measured with the earlier form rounded as coarsely as the later one. The other way round a
source would be blamed for what the artifact's integers lost.
"""

from __future__ import annotations

from pathlib import Path

from edgekit.artifact import manifest
from edgekit.diff.onnx_form import OnnxForm
from edgekit.diff.tflite_form import TfliteForm
from edgekit.types import Precision

_BITS = {
    Precision.FP32: (32, 32),
    Precision.FP16: (16, 16),
    Precision.BF16: (15, 15),
    Precision.INT16X8: (8, 16),
    Precision.FP8: (7, 7),
    Precision.INT8: (8, 8),
    Precision.INT8_DYNAMIC: (8, 8),
    Precision.INT8_WEIGHTS: (8, 32),
    Precision.INT4_WEIGHTS: (4, 32),
}
"""How fine weights and activations are, by the bits that hold them; of two formats of one size the coarser has less."""


def reference_first(a: str, b: str) -> tuple[str, str]:
    """``a`` and ``b``, or the other way round where ``a`` was made from ``b``, or could have been."""
    if not _is_made(a) and not a.endswith(".onnx"):
        return a, b
    ours, theirs = _fineness(a), _fineness(b)
    if ours == theirs:
        return (b, a) if _is_made(a) and not _is_made(b) else (a, b)
    return (b, a) if all(x <= y for x, y in zip(ours, theirs, strict=True)) else (a, b)


def _is_made(text: str) -> bool:
    """Whether it is what a runtime loads, not what a build begins with."""
    return is_artifact(text) or text.endswith(".tflite")


def is_artifact(text: str) -> bool:
    """Whether ``text`` names an artifact's folder, or the manifest in it."""
    path = Path(text)
    return path.name == manifest.FILE_NAME or (path / manifest.FILE_NAME).is_file()


def _fineness(text: str) -> tuple[int, int]:
    """Bits of weights and of activations, those of a float32 model for what is none of these."""
    path = Path(text)
    if is_artifact(text):
        return _BITS[manifest.read(path).manifest.target.precision]
    if path.suffix not in (".onnx", ".tflite") or not path.is_file():
        return 32, 32
    form = OnnxForm(path.name, path) if path.suffix == ".onnx" else TfliteForm(path.name, path)
    floats = {24: 32, 11: 16}.get(form.float_bits, 15)
    return form.weight_bits, min((layer.bits for layer in form.layers if layer.bits), default=floats)
