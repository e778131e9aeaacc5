"""OpenVINO GenAI on CPUs: language models as a folder with a stateful model, tokenizer models and chat template.

In comes a decoder with its weights, some of them integers. Out goes what ``openvino_genai.LLMPipeline`` loads. What the
pipeline executes where is not told by it.
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

NAME = "openvino_genai"

INFO = BackendInfo(
    title="OpenVINO GenAI",
    requirement="edgekit-deploy[openvino-genai]",
    wheels=(("openvino-genai",),),
    packages=("openvino-genai", "openvino-tokenizers", "openvino"),
    purl="pkg:pypi/openvino-genai",
)


def available() -> Availability:
    """Whether the modules ``openvino_genai`` and ``openvino_tokenizers`` can be found; they are not imported."""
    for module in ("openvino_genai", "openvino_tokenizers"):
        if importlib.util.find_spec(module) is None:
            return Availability(
                installed=False,
                usable=False,
                why_not=f"{module.replace('_', '-')} is not installed",
                hint="pip install 'edgekit-deploy[openvino-genai]'",
            )
    return Availability(installed=True, usable=True, version=versions.installed("openvino-genai"))


def lower(model: OnnxModel, target: Target, options: Mapping[str, Option], out: Path) -> Lowered:
    """Raises :class:`UnsupportedError`: a graph has no tokenizer and no cache."""
    del model, options, out
    raise UnsupportedError(
        f"{target.name} is for language models, from hf:DIR or a .gguf file",
        hint="use openvino-fp32 and its siblings",
    )


def lower_decoder(
    decoder: Decoder,
    weights: Mapping[str, BlockWeights],
    target: Target,
    options: Mapping[str, Option],
    out: Path,
) -> Lowered:
    """Write the model, the tokenizer's models and ``generation_config.json`` into ``out``, where the tokenizer's files
    are."""
    from edgekit.backends.openvino_genai import artifact

    return artifact.lower(decoder, weights, target, options, out)


def placement(model: OnnxModel, target: Target, lowered: Lowered, raw: Mapping[str, Json]) -> Placement:
    """The pipeline does not tell what it executes where."""
    del model, lowered, raw
    return Placement(precision=target.precision.value, share=None, operators=0)
