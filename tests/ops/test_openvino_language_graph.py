"""The model of a decoder in OpenVINO against PyTorch, token by token, and the integers of its weights."""

from __future__ import annotations

import copy
import importlib
from typing import Any

import numpy as np
import pytest

pytest.importorskip("transformers", reason="language models need the extra genai")

import torch

from edgekit.backends.openvino_genai import graph
from edgekit.backends.openvino_genai.artifact import runtime
from edgekit.errors import MissingExtraError
from edgekit.load import decoder as decoders
from edgekit.quantize.block_weights import BlockWeights, rounded, whole_block
from tests.ops.language_models import VOCABULARY, made

try:
    openvino = runtime()
except MissingExtraError:
    pytest.skip("needs the extra openvino", allow_module_level=True)

DECODERS = (
    "llama", "llama-biased", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi", "phi3", "olmo2",
)  # fmt: skip
PROMPT, LENGTH = 25, 40
TOKENS = torch.randint(0, VOCABULARY, (1, LENGTH), generator=torch.Generator().manual_seed(1)).numpy()


def last_logits(model: Any) -> np.ndarray[Any, Any]:
    """The logits after the prompt and after each further token, which come one by one."""
    settings = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "INFERENCE_NUM_THREADS": 1}
    settings["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = (
        "0"  # how inputs are rounded to INT8 is the processor's matter
    )
    request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()
    found, done = [], 0
    for end in range(PROMPT, LENGTH + 1):
        given = {
            "input_ids": TOKENS[:, done:end],
            "attention_mask": np.ones((1, end), np.int64),
            "position_ids": np.arange(done, end)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        found.append(request.infer(given)["logits"][0, -1].copy())
        done = end
    return np.stack(found)


def reference(model: Any) -> np.ndarray[Any, Any]:
    with torch.no_grad():
        logits: np.ndarray[Any, Any] = (
            model(input_ids=torch.from_numpy(TOKENS)).logits[0, PROMPT - 1 :].numpy()
        )
    return logits


@pytest.mark.parametrize("name", DECODERS)
def test_the_model_says_what_pytorch_says(name: str) -> None:
    model = made(name)
    built = graph.build(decoders.read(model), {}, openvino, half=False)
    wanted = reference(model)
    assert np.abs(last_logits(built) - wanted).max() < 1e-5 * np.abs(wanted).max()


@pytest.mark.parametrize(
    ("name", "bits", "form", "block"),
    [
        ("llama", 4, "zeros", 32),
        ("gemma3", 4, "offsets", 32),
        ("phi3", 4, "symmetric", 64),
        ("phi", 8, "symmetric", 16),
    ],
)
def test_integers_are_read_as_what_they_stand_for(name: str, bits: int, form: str, block: int) -> None:
    model = made(name)
    decoder, widened = decoders.read(model), copy.deepcopy(model)
    weights: dict[str, BlockWeights] = {}
    for module in [p.name for p in decoder.linears()]:
        weights[module] = rounded(model.get_submodule(module).weight.detach(), bits, form=form, block=block)
    weights[decoder.embedding_name] = rounded(decoder.embedding, bits, block=block)
    for module, stored in weights.items():
        widened.get_submodule(module).weight.data = torch.from_numpy(stored.widened())
    if decoder.head is not None:
        weights[decoder.head.name] = rounded(decoder.head.weight, 8, block=block)
        widened.lm_head.weight.data = torch.from_numpy(weights[decoder.head.name].widened())
    wanted = reference(widened)
    given = last_logits(graph.build(decoder, weights, openvino, half=True))
    # Real zeros are rounded to float16.
    assert np.corrcoef(given.ravel(), wanted.ravel())[0, 1] > 0.9999


def test_integers_are_stored_as_such_once() -> None:
    model = made("llama")
    decoder = decoders.read(model)
    table = rounded(decoder.embedding, 4)
    built = graph.build(decoder, {decoder.embedding_name: table}, openvino, half=False)
    packed = [n for n in built.get_ops() if n.get_element_type() == openvino.Type.u4]
    names = [n.get_friendly_name() for n in packed]
    assert sorted(names) == ["embedding.integers", "embedding.zeros"]
    data = packed[names.index("embedding.integers")].data.reshape(-1)
    assert np.array_equal(data, table.packed().reshape(-1))


def test_a_block_without_scale_is_its_offset() -> None:
    stored = BlockWeights(
        bits=4,
        integers=np.full((3, 64), 5, np.uint8),
        scales=np.zeros((3, 2), np.float32),
        offsets=np.asarray([[0.5, -2.0], [0.0, 1.0], [3.0, 0.0]], np.float32),
    )
    assert np.array_equal(graph._with_scales(stored).widened(), stored.widened())


@pytest.mark.parametrize(("name", "windows"), [("llama", [0, 0]), ("gemma3", [16, 0]), ("phi3", [16, 16])])
def test_paged_attention_knows_the_windows(name: str, windows: list[int]) -> None:
    """The pipeline turns the model into one with paged attention, which masks by itself: by what it recognises."""
    built = graph.build(decoders.read(made(name)), {}, openvino, half=False)
    importlib.import_module("openvino._offline_transformations").paged_attention_transformation(built)
    found = [n for n in built.get_ordered_ops() if n.get_type_name() == "PagedAttentionExtension"]
    assert [_number(n.input_value(10).get_node()) for n in found] == windows


def _number(node: Any) -> int:
    """A constant, or a product or conversion of constants."""
    inputs = [_number(node.input_value(i).get_node()) for i in range(node.get_input_size())]
    if not inputs:
        return int(node.data.reshape(-1)[0])
    return int(np.prod(inputs)) if node.get_type_name() == "Multiply" else inputs[0]


def test_blocks_are_whole() -> None:
    assert [whole_block(n, 128) for n in (256, 576, 1568, 48, 100)] == [128, 64, 32, 16, 100]
