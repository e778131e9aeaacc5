"""The graph of a decoder in ONNX Runtime against PyTorch, token by token, and the integers of its weights."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("transformers", reason="language models need the extra genai")

import onnx_ir as ir
import onnxruntime
import torch

from edgekit.backends.genai import graph
from edgekit.errors import UnsupportedError
from edgekit.load import decoder as decoders
from edgekit.quantize.block_offsets import COPIES, as_columns
from edgekit.quantize.block_weights import BlockWeights, rounded
from tests.ops.language_models import VOCABULARY, made

DECODERS = (
    "llama", "llama-biased", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi", "phi3", "olmo2",
)  # fmt: skip
PROMPT, LENGTH = 25, 40


def last_logits(model: ir.Model, decoder: Any, path: Path) -> np.ndarray[Any, Any]:
    """The logits after the prompt and after each further token, which come one by one."""
    ir.save(model, path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    a = decoder.layers[0].attention
    empty = np.zeros((1, a.key_heads, 0, a.head_size), np.float32)
    names = [i.name for i in session.get_inputs() if i.name.startswith("past")]
    past, found, done = [empty] * len(names), [], 0
    for end in range(PROMPT, LENGTH + 1):
        given = {"input_ids": TOKENS[:, done:end], "attention_mask": np.ones((1, end), np.int64)}
        logits, *past = session.run(None, given | dict(zip(names, past, strict=True)))
        assert logits.shape == (1, 1, VOCABULARY)
        found.append(logits[0, 0])
        done = end
    return np.stack(found)


TOKENS = torch.randint(0, VOCABULARY, (1, LENGTH), generator=torch.Generator().manual_seed(1)).numpy()


def reference(model: Any) -> np.ndarray[Any, Any]:
    with torch.no_grad():
        logits: np.ndarray[Any, Any] = (
            model(input_ids=torch.from_numpy(TOKENS)).logits[0, PROMPT - 1 :].numpy()
        )
    return logits


@pytest.mark.parametrize("name", DECODERS)
def test_the_graph_says_what_pytorch_says(name: str, tmp_path: Path) -> None:
    model = made(name)
    decoder = decoders.read(model)
    given, wanted = last_logits(graph.build(decoder, {}), decoder, tmp_path / "model.onnx"), reference(model)
    assert np.abs(given - wanted).max() < 1e-5 * np.abs(wanted).max()


def written(stored: BlockWeights) -> np.ndarray[Any, Any]:
    """The matrix that the graph has: offsets stand in columns of their own where they fit."""
    columns = as_columns(stored)
    if columns is None:
        return stored.widened()
    inputs = stored.shape[1]
    offsets = np.split(columns.widened()[:, inputs:], COPIES, axis=1)
    whole: np.ndarray[Any, Any] = columns.widened()[:, :inputs] + np.repeat(sum(offsets), stored.block, 1)
    return whole


@pytest.mark.parametrize(
    ("name", "bits", "form"),
    [("llama", 4, "zeros"), ("gemma3", 4, "offsets"), ("phi3", 4, "symmetric"), ("phi", 8, "symmetric")],
)
def test_integers_are_read_as_what_they_stand_for(name: str, bits: int, form: str, tmp_path: Path) -> None:
    model = made(name)
    decoder, widened = decoders.read(model), copy.deepcopy(model)
    weights: dict[str, BlockWeights] = {}
    for module in [p.name for p in decoder.linears()]:
        weights[module] = rounded(model.get_submodule(module).weight.detach(), bits, form=form)
    weights[decoder.embedding_name] = rounded(decoder.embedding, bits)
    for module, stored in weights.items():
        widened.get_submodule(module).weight.data = torch.from_numpy(written(stored))
    whole = graph.build(decoder, weights, accuracy_level=1)
    given, wanted = last_logits(whole, decoder, tmp_path / "model.onnx"), reference(widened)
    assert np.abs(given - wanted).max() < 1e-5 * np.abs(wanted).max()


def test_embedding_and_head_are_one_table_in_the_file() -> None:
    model = made("llama")
    decoder = decoders.read(model)
    assert decoder.head is None
    whole = graph.build(decoder, {decoder.embedding_name: rounded(decoder.embedding, 4)})
    tables = [n for n in whole.graph.initializers if n.startswith("embedding.integers")]
    readers = {u.node.op_type for n in tables for u in whole.graph.initializers[n].uses()}
    assert len(tables) == 1
    assert readers == {"Reshape", "MatMulNBits"}


@pytest.mark.parametrize(
    ("name", "why"),
    [("gpt2", "positions are not rotary"), ("mixtral", "model.layers.0.mlp.*projection was found")],
)
def test_what_is_not_understood_is_refused_by_name(name: str, why: str) -> None:
    with pytest.raises(UnsupportedError, match=why):
        decoders.read(made(name))


def test_a_parameter_without_a_place_is_refused() -> None:
    model = made("llama")
    model.model.layers[0].register_parameter("extra", torch.nn.Parameter(torch.zeros(3)))
    with pytest.raises(UnsupportedError, match=r"model\.layers\.0\.extra has no place"):
        decoders.read(model)


def test_gptq_beats_nearest_on_inputs_that_are_alike() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(48, 64, generator=generator)
    inputs = torch.randn(512, 8, generator=generator) @ torch.randn(8, 64, generator=generator)
    inputs += 0.1 * torch.randn(512, 64, generator=generator)
    wanted = inputs @ weight.T

    def error(stored: BlockWeights) -> float:
        return float((inputs @ torch.from_numpy(stored.widened()).T - wanted).square().sum())

    assert error(rounded(weight, 4, inputs.T @ inputs)) < 0.5 * error(rounded(weight, 4))


def test_offsets_find_a_grid_that_is_not_around_an_integer_zero() -> None:
    generator = torch.Generator().manual_seed(0)
    steps = torch.randint(0, 16, (6, 2, 32), generator=generator).float()
    steps[..., 0], steps[..., 1] = 0, 15
    scale = (torch.rand(6, 2, 1, generator=generator) + 0.5).half().float()
    first = torch.randn(6, 2, 1, generator=generator).half().float()
    weight = (steps * scale + first).reshape(6, 64)
    assert np.allclose(rounded(weight, 4, form="offsets").widened(), weight.numpy(), atol=0.02)
    assert not np.allclose(rounded(weight, 4).widened(), weight.numpy(), atol=0.02)


def offset_blocks() -> BlockWeights:
    weight = torch.randn(24, 320, generator=torch.Generator().manual_seed(0))
    return rounded(weight, 4, form="offsets")


def test_offsets_in_columns_are_near_what_they_were() -> None:
    stored = offset_blocks()
    columns = as_columns(stored)
    assert columns is not None
    assert columns.offsets is None
    assert columns.shape == (24, 320 + COPIES * 10)
    steps = np.abs(written(stored) - stored.widened()) / stored.scales.max(1, keepdims=True)
    assert steps.max() < 1 / 24
    assert np.sqrt(np.square(steps).mean()) < 1 / 75


@pytest.mark.parametrize("scale", [0.0, 1e-3])
def test_offsets_that_integers_are_too_coarse_for_stay_real(scale: float, tmp_path: Path) -> None:
    model = made("llama")
    decoder, widened = decoders.read(model), copy.deepcopy(model)
    name = next(iter(decoder.linears())).name
    stored = rounded(model.get_submodule(name).weight.detach(), 4, form="offsets")
    assert stored.offsets is not None
    stored.scales[0, 0], stored.offsets[0, 0] = scale, 2.0  # as a GGUF file has a block of equal weights
    assert as_columns(stored) is None
    widened.get_submodule(name).weight.data = torch.from_numpy(stored.widened())
    whole = graph.build(decoder, {name: stored}, accuracy_level=1)
    given, wanted = last_logits(whole, decoder, tmp_path / "model.onnx"), reference(widened)
    assert np.abs(given - wanted).max() < 1e-5 * np.abs(wanted).max()


def test_a_table_with_offsets_is_looked_up_with_them(tmp_path: Path) -> None:
    model = made("llama")
    decoder, widened = decoders.read(model), copy.deepcopy(model)
    assert decoder.head is None
    stored = rounded(decoder.embedding, 4, form="offsets")
    widened.get_submodule(decoder.embedding_name).weight.data = torch.from_numpy(stored.widened())
    whole = graph.build(decoder, {decoder.embedding_name: stored}, accuracy_level=1)
    given, wanted = last_logits(whole, decoder, tmp_path / "model.onnx"), reference(widened)
    assert np.abs(given - wanted).max() < 1e-5 * np.abs(wanted).max()


def test_a_product_with_offsets_has_no_second_product() -> None:
    model = made("llama")
    decoder = decoders.read(model)
    weights = {
        p.name: rounded(model.get_submodule(p.name).weight.detach(), 4, form="offsets")
        for p in decoder.linears()
    }
    kinds = {n.op_type for n in graph.build(decoder, weights).graph}
    assert "MatMulNBits" in kinds
    assert "MatMul" not in kinds


def test_a_block_that_is_not_whole() -> None:
    weight = torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
    stored = rounded(weight, 8, form="symmetric")
    assert stored.widened().shape == (5, 40)
    assert stored.packed().shape == (5, 2, 32)
    assert np.abs(stored.widened() - weight.numpy()).max() < 0.02
