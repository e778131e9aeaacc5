"""What each layer costs: the noise at the outputs with that layer alone in integers."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgekit.quantize.auto import probes, run, snr
from edgekit.quantize.calibrate.calibration import Calibration
from edgekit.quantize.corrections import FloatModels
from edgekit.quantize.driver import quantize
from edgekit.quantize.options import QuantizeOptions
from edgekit.types import OnnxModel, Samples, Target

Progress = Callable[[int, int], None]
"""Called with (layers done, layers in all)."""


@dataclass(frozen=True, kw_only=True)
class LayerSensitivity:
    """One quantized layer. ``snr_db`` is that of the model's outputs with only this layer in integers."""

    node: str
    op: str
    module_path: str
    snr_db: float
    macs: int

    @property
    def noise(self) -> float:
        """Noise power at the outputs, relative to the signal."""
        return float(10.0 ** (-self.snr_db / 10.0))


@dataclass(frozen=True, kw_only=True)
class Quantizing:
    """All that :func:`edgekit.quantize.quantize` takes but where to write; ``samples`` as there."""

    model: OnnxModel
    calibration: Calibration
    target: Target
    options: QuantizeOptions
    samples: Samples


def sensitivity(
    job: Quantizing, folder: Path, progress: Progress | None = None
) -> tuple[LayerSensitivity, ...]:
    """Every layer that multiplies, the most harmful first.

    Takes one quantization and a few inferences a layer, in ONNX Runtime on the calibration samples. Corrections
    that rescale the float model are made once, before.
    ``folder`` holds the candidates while it runs.
    """
    plain = dataclasses.replace(
        job.options,
        method="mse" if job.options.method == "auto" else job.options.method,
        corrections=("bias",) if "bias" in job.options.corrections else (),
    )
    folder.mkdir(parents=True, exist_ok=True)
    chosen = probes(job.samples)[:16]
    reference = run(job.model.path, chosen)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".sensitivity.") as temporary:
        out = Path(temporary) / "model.onnx"
        floats = FloatModels(job.model, job.calibration, job.samples, Path(temporary))
        model, calibration, _ = floats.corrected(job.options.corrections)
        _, report = quantize(model, calibration, job.target, plain, out)
        cores = [n for n in report.quantized if n.macs]
        found = []
        for i, layer in enumerate(cores):
            others = tuple(n.node for n in cores if n.node != layer.node)
            alone = dataclasses.replace(plain, exclude=(*plain.exclude, *others))
            candidate, _ = quantize(model, calibration, job.target, alone, out)
            figure = snr(reference, run(candidate.path, chosen))
            found.append(
                LayerSensitivity(
                    node=layer.node,
                    op=layer.op,
                    module_path=layer.module_path,
                    snr_db=figure,
                    macs=layer.macs,
                )
            )
            if progress is not None:
                progress(i + 1, len(cores))
    return tuple(sorted(found, key=lambda s: (s.snr_db, s.macs, s.node)))
