"""Language models for OpenVINO GenAI end to end: build, gates, verify, chat, on the real runtime."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers", reason="language models need the extra openvino-genai")

import edgekit
from edgekit.artifact import language, talk
from edgekit.backends import openvino_genai
from edgekit.core.config import Options

sys.path.insert(0, str(Path(__file__).parents[1] / "ops"))
from language_models import TEMPLATE, TOOLS, folder

pytestmark = pytest.mark.skipif(
    not openvino_genai.available().usable, reason="needs the extra openvino-genai"
)
LIMITS = {"token-agreement": 0.3, "perplexity": 0.3}
"""Of random weights rounded to four bits: they hold no language that could be kept."""


def build(source: str, target: str, out: Path, **settings: object) -> edgekit.Artifact:
    options = Options(target=(target,), out=out, set={"eval_tokens": 100, **settings}, limit=LIMITS)
    (artifact,) = edgekit.build(source, options=options).raise_for_failures().artifacts
    return artifact


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder("llama", tmp_path_factory.mktemp("llama") / "model", template=TOOLS)


@pytest.fixture(scope="module")
def built(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> edgekit.Artifact:
    """The float32 artifact, by the limits of its row."""
    options = Options(
        target=("openvino-genai-fp32",), out=tmp_path_factory.mktemp("out"), set={"eval_tokens": 150}
    )
    (artifact,) = edgekit.build(f"hf:{llama}", options=options).raise_for_failures().artifacts
    return artifact


def test_float32_says_what_pytorch_says(built: edgekit.Artifact) -> None:
    gates = {g.name: g for g in built.manifest.gates}
    assert built.manifest.status == "passed"
    assert gates["greedy"].value == 1.0
    assert gates["token-agreement"].value == 1.0
    assert abs(gates["perplexity"].value or 1.0) < 1e-4
    assert abs(gates["paged-attention"].value or 1.0) < 1e-4
    assert {"tokenizer", "chat-template", "stop", "window"} <= set(gates)
    assert gates["chat-template"].message.startswith("10 of 10")
    assert built.manifest.details["cache_bytes_per_token"] == 2 * 2 * 2 * 16 * 4


def test_verify_repeats_every_gate(built: edgekit.Artifact) -> None:
    replay = built.verify()
    assert replay.status == "passed"
    assert {g.name for g in replay.gates} == {g.name for g in built.manifest.gates}


def test_bench_tells_prompt_and_new_tokens_apart(built: edgekit.Artifact) -> None:
    settings = edgekit.BenchSettings(processes=1, seconds=0.01, iterations=1)
    (measured,) = built.bench(settings=settings).raise_for_failures().measured
    (row,) = measured.measurement.facts["language"]  # type: ignore[misc, union-attr]
    assert row["prefill"] > 0
    assert row["decode"] > 0


def test_it_is_talked_to(built: edgekit.Artifact) -> None:
    voice = talk.opened(built._record, threads=1)
    said = list(talk.spoken(voice, [{"role": "user", "content": "Hello"}], 8))
    assert "".join(said)
    with pytest.raises(edgekit.errors.BackendError, match="longer than the window"):
        list(talk.spoken(voice, [{"role": "user", "content": "Hello " * 200}], 8))


@pytest.mark.parametrize("name", ["qwen3", "gemma3", "phi"])
@pytest.mark.parametrize("target", ["openvino-genai-int4", "openvino-genai-int8", "openvino-genai-fp16"])
def test_other_families_in_every_precision(name: str, target: str, tmp_path: Path) -> None:
    source = folder(name, tmp_path / "model")
    settings = {"calib_tokens": 200, "group": 64} if target.endswith("int4") else {}
    artifact = build(f"hf:{source}", target, tmp_path / "out", **settings)
    names = {g.name for g in artifact.manifest.gates}
    assert "paged-attention" in names
    shares = [g.value for g in artifact.manifest.gates if g.name == "integer-weights"]
    assert shares == ([] if target.endswith("fp16") else [1.0])


def test_capped_scores_have_no_paged_attention(tmp_path: Path) -> None:
    source = folder("gemma2", tmp_path / "model", template=TEMPLATE)
    artifact = build(f"hf:{source}", "openvino-genai-fp32", tmp_path / "out")
    gates = {g.name: g for g in artifact.manifest.gates}
    assert "paged-attention" not in gates
    assert gates["greedy"].value == 1.0


def test_tools_that_a_template_leaves_out_are_not_asked_for(tmp_path: Path) -> None:
    """There the pipeline writes an instruction of its own."""
    source = folder("llama", tmp_path / "model", template=TEMPLATE)
    artifact = build(f"hf:{source}", "openvino-genai-fp32", tmp_path / "out")
    assert any("2 of the conversations, or their tools" in n for n in artifact.manifest.notes)


def test_the_same_decoder_gives_the_same_bytes(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = []
    for run in ("a", "b"):
        monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / f"cache-{run}"))
        artifact = build(f"hf:{llama}", "openvino-genai-int8", tmp_path / run)
        digests.append({f.name: f.sha256 for f in artifact.manifest.files})
    assert digests[0] == digests[1]


def test_another_runtime_has_no_paged_attention(llama: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime_genai", reason="needs the extra genai")
    artifact = build(f"hf:{llama}", "ort-genai-fp32", tmp_path / "out")
    gates = {g.name: g for g in artifact.manifest.gates}
    assert "paged-attention" not in gates
    assert gates["chat-template"].message.startswith("10 of 10")
    assert language.read(artifact.directory / language.FILE).refused == 0
