"""The folder that onnxruntime-genai loads: the graph with its weights beside it, and ``genai_config.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from edgekit.backends.genai import graph
from edgekit.backends.genai.settings import CONFIG, INPUTS, KIND, OUTPUTS, SESSION
from edgekit.errors import UnsupportedError
from edgekit.types import Json, Lowered, Option, Target, TensorSpec

if TYPE_CHECKING:
    from edgekit.load.decoder import Decoder
    from edgekit.quantize.block_weights import BlockWeights

_INLINE = 1024
"""Bytes of a constant that stays in the graph's own file: shapes and scalars, which the runtime folds."""

_PAIRS = 8
"""GroupQueryAttention rotates multiples of so many pairs."""


def lower(
    decoder: Decoder,
    weights: Mapping[str, BlockWeights],
    target: Target,
    options: Mapping[str, Option],
    out: Path,
) -> Lowered:
    """Raises :class:`UnsupportedError` for what the runtime's attention cannot do."""
    _refuse(decoder, target)
    model = graph.build(decoder, weights, accuracy_level=int(options.get("accuracy_level", 4)))
    data = f"{target.file}.data"
    ir.save(model, out / target.file, external_data=data, size_threshold_bytes=_INLINE)
    (out / CONFIG).write_text(json.dumps(_config(decoder, target), indent=2) + "\n", encoding="utf-8")
    size, types = len(model.graph), sorted({n.op_type for n in model.graph})
    return Lowered(
        files=(target.file, data, CONFIG),
        inputs=(TensorSpec(name="input_ids", dtype="int64", shape=(1, "sequence_length")),),
        outputs=(TensorSpec(name="logits", dtype="float32", shape=(1, 1, decoder.vocabulary)),),
        runtime=dict(target.runtime),
        minimum_runtime="0.9",
        notes=decoder.notes,
        details={"nodes": size, "operators": types, "cache_bytes_per_token": cache_bytes(decoder)},
        integer_weights=decoder.share(weights),
    )


def cache_bytes(decoder: Decoder) -> int:
    """Bytes that the cache grows by with each token: keys and values of every layer in float32."""
    return sum(2 * 4 * layer.attention.key_heads * layer.attention.head_size for layer in decoder.layers)


def _refuse(decoder: Decoder, target: Target) -> None:
    for name, rotary in decoder.rotary.items():
        pairs = rotary.frequencies.shape[0]
        if pairs % _PAIRS:
            raise UnsupportedError(
                f"{target.name} rotates multiples of {_PAIRS} pairs of a head, and {name} has {pairs}",
                hint="GroupQueryAttention of ONNX Runtime wants it so: heads of 16, 32, 48 … rotated numbers",
            )
    if len({(x.attention.key_heads, x.attention.head_size) for x in decoder.layers}) > 1:
        raise UnsupportedError(
            f"{target.name} has one size of cache for all layers, and these differ",
            hint="onnxruntime-genai states heads and their size once for the whole model",
        )


def _config(decoder: Decoder, target: Target) -> Json:
    attention = decoder.layers[0].attention
    stops = list(decoder.stop_tokens)
    pad = decoder.pad_token if decoder.pad_token is not None else (stops[0] if stops else 0)
    begin = {} if decoder.begin_token is None else {"bos_token_id": decoder.begin_token}
    return {
        "model": {
            **begin,
            "context_length": decoder.window,
            "decoder": {
                "session_options": SESSION,
                "filename": target.file,
                "head_size": attention.head_size,
                "hidden_size": decoder.width,
                "inputs": INPUTS,
                "outputs": OUTPUTS,
                "num_attention_heads": attention.heads,
                "num_hidden_layers": len(decoder.layers),
                "num_key_value_heads": attention.key_heads,
            },
            "eos_token_id": stops,
            "pad_token_id": pad,
            "type": KIND,
            "vocab_size": decoder.vocabulary,
        },
        "search": {
            "do_sample": False,
            "max_length": decoder.window,
            "num_beams": 1,
            "num_return_sequences": 1,
            "past_present_share_buffer": True,
            "repetition_penalty": 1.0,
            "temperature": 1.0,
            "top_k": 50,
            "top_p": 1.0,
        },
    }
