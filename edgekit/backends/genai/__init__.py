"""onnxruntime-genai on CPUs: language models as a folder with graph, settings, tokenizer and chat template.

In comes a decoder with its weights, some of them integers. Out goes what ``onnxruntime_genai.Model`` loads. The
runtime does not tell what it executes where.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.core import versions
from edgekit.core.plugins import BackendInfo
from edgekit.errors import UnsupportedError
from edgekit.types import Availability, Json, Lowered, OnnxModel, Option, Placement, Target

if TYPE_CHECKING:
    from edgekit.load.decoder import Decoder
    from edgekit.quantize.block_weights import BlockWeights

NAME = "onnxruntime_genai"
DISTRIBUTIONS = ("onnxruntime-genai", "onnxruntime-genai-cuda", "onnxruntime-genai-directml")

INFO = BackendInfo(
    title="ONNX Runtime GenAI",
    requirement="edgekit-deploy[genai]",
    wheels=(("onnxruntime-genai",),),
    packages=DISTRIBUTIONS,
    purl="pkg:pypi/onnxruntime-genai",
    received="edgekit.backends.genai.settings",
)


def available() -> Availability:
    """Whether the module ``onnxruntime_genai`` can be found; it is not imported."""
    if importlib.util.find_spec("onnxruntime_genai") is None:
        return Availability(
            installed=False,
            usable=False,
            why_not="onnxruntime-genai is not installed",
            hint="pip install 'edgekit-deploy[genai]'",
        )
    return Availability(installed=True, usable=True, version=versions.installed(*DISTRIBUTIONS))


def lower(model: OnnxModel, target: Target, options: Mapping[str, Option], out: Path) -> Lowered:
    """Raises :class:`UnsupportedError`: a graph has no tokenizer and no cache."""
    del model, options, out
    raise UnsupportedError(
        f"{target.name} is for language models, from hf:DIR or a .gguf file",
        hint="use ort-fp32 and its siblings",
    )


def lower_decoder(
    decoder: Decoder,
    weights: Mapping[str, BlockWeights],
    target: Target,
    options: Mapping[str, Option],
    out: Path,
) -> Lowered:
    """Write ``model.onnx``, its weights and ``genai_config.json`` into ``out``, where the tokenizer's files are."""
    from edgekit.backends.genai import artifact

    return artifact.lower(decoder, weights, target, options, out)


def placement(model: OnnxModel, target: Target, lowered: Lowered, raw: Mapping[str, Json]) -> Placement:
    """The runtime does not tell what it executes where."""
    del model, lowered, raw
    return Placement(precision=target.precision.value, share=None, operators=0)
