"""Language models end to end: build, gates, verify, bench, chat, on the real runtime."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers", reason="language models need the extra genai")
pytest.importorskip("onnxruntime_genai", reason="needs the extra genai")

import edgekit
from edgekit.artifact import language
from edgekit.core.config import Options
from edgekit.errors import DataError, GateFailedError, SourceError, UnsupportedError, UsageError

sys.path.insert(0, str(Path(__file__).parents[1] / "ops"))
from language_models import folder

LIMITS = {"token-agreement": 0.3, "perplexity": 0.3}
"""Of random weights rounded to four bits: they hold no language that could be kept."""


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder("llama", tmp_path_factory.mktemp("llama") / "model")


@pytest.fixture(scope="module")
def built(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> edgekit.Artifact:
    """The float32 artifact."""
    options = Options(
        target=("ort-genai-fp32",), out=tmp_path_factory.mktemp("out"), set={"eval_tokens": 150}
    )
    (artifact,) = edgekit.build(f"hf:{llama}", options=options).raise_for_failures().artifacts
    return artifact


def test_float32_says_what_pytorch_says(built: edgekit.Artifact) -> None:
    gates = {g.name: g for g in built.manifest.gates}
    assert built.manifest.status == "passed"
    assert built.manifest.task == "text-generation"
    assert gates["greedy"].value == 1.0
    assert gates["token-agreement"].value == 1.0
    assert abs(gates["perplexity"].value or 1.0) < 1e-4
    assert {"tokenizer", "chat-template", "stop", "window"} <= set(gates)
    assert built.manifest.details["cache_bytes_per_token"] == 2 * 2 * 2 * 16 * 4


def test_verify_repeats_every_gate(built: edgekit.Artifact) -> None:
    replay = built.verify()
    assert replay.status == "passed"
    assert {g.name for g in replay.gates} == {g.name for g in built.manifest.gates}
    with pytest.raises(UsageError, match="verified with the text that it was built with"):
        built.verify(evaluation="x.txt")


def test_bench_tells_prompt_and_new_tokens_apart(built: edgekit.Artifact) -> None:
    settings = edgekit.BenchSettings(processes=1, seconds=0.01, iterations=1)
    (measured,) = built.bench(settings=settings).raise_for_failures().measured
    (row,) = measured.measurement.facts["language"]  # type: ignore[misc, union-attr]
    assert row["prompt"] == 16
    assert row["prefill"] > 0
    assert row["decode"] > 0


@pytest.mark.parametrize("name", ["qwen3", "gemma3", "phi3"])
@pytest.mark.parametrize("target", ["ort-genai-int4", "ort-genai-int8"])
def test_other_families_in_integers(name: str, target: str, tmp_path: Path) -> None:
    source = folder(name, tmp_path / "model")
    options = Options(
        target=(target,),
        out=tmp_path / "out",
        limit=LIMITS,
        set={"eval_tokens": 100, "calib_tokens": 200},
    )
    (artifact,) = edgekit.build(f"hf:{source}", options=options).raise_for_failures().artifacts
    shares = [g.value for g in artifact.manifest.gates if g.name == "integer-weights"]
    assert shares == [1.0]


def test_a_limit_that_is_missed_fails_by_name(llama: Path, tmp_path: Path) -> None:
    options = Options(
        target=("ort-genai-int8",),
        out=tmp_path,
        limit={"perplexity": 0.0, "size": "1kB"},
        set={"eval_tokens": 150},
    )
    with pytest.raises(GateFailedError) as caught:
        edgekit.build(f"hf:{llama}", options=options).raise_for_failures()
    assert "size" in caught.value.gates


def test_golden_answers_of_another_model_are_not_passed(built: edgekit.Artifact, tmp_path: Path) -> None:
    """The gates can fail: the same runtime, held against answers that another model would give."""
    from dataclasses import replace

    from edgekit.artifact.limits import Limits
    from edgekit.artifact.run import runnable
    from edgekit.core.targets import find
    from edgekit.devices.catalogue import LOCAL

    answers = language.read(built.directory / language.FILE)
    shifted = [
        replace(p, logprob=tuple(x + 0.1 for x in p.logprob), best=p.best[::-1]) for p in answers.passages
    ]
    first = answers.continuations[0]
    other = replace(
        answers,
        passages=tuple(shifted),
        continuations=(
            replace(first, continuation=tuple(t + 1 for t in first.continuation)),
            *answers.continuations[1:],
        ),
        words=(replace(answers.words[0], ids=(5,)), *answers.words[1:]),
        chats=(replace(answers.chats[0], text="x"), *answers.chats[1:]),
        stop_tokens=(7,),
        window=answers.window - 8,
    )
    evidence, _ = language.examine(runnable(built._record), other, device=LOCAL)
    found = language.gates(evidence, find("ort-genai-fp32").tolerance, Limits(), 1, None)
    assert [g for g in found if g.verdict != "fail"] == []


def test_what_takes_arrays_is_refused_in_words(built: edgekit.Artifact, tmp_path: Path) -> None:
    spec = edgekit.PackageSpec(name="com.example.a", version="1.0.0", license="MIT", format="bundle")
    for use in (
        lambda: built.package(spec, tmp_path / "package"),
        built.profile,
        built.diff,
        lambda: list(built.predict([])),
    ):
        with pytest.raises(UnsupportedError, match="is a language model"):
            use()


def test_a_plain_target_is_refused_by_task(llama: Path, tmp_path: Path) -> None:
    options = Options(target=("ort-int8-weights",), out=tmp_path, task="text-generation")
    with pytest.raises(UsageError, match="no cache"):
        edgekit.build(f"hf:{llama}", options=options)


def test_what_is_no_language_model_or_has_no_tokenizer(llama: Path, tmp_path: Path) -> None:
    options = Options(target=("ort-genai-fp32",), out=tmp_path / "out")
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).write_bytes((llama / name).read_bytes())
    with pytest.raises(SourceError, match="no tokenizer"):
        edgekit.build(f"hf:{bare}", options=options)
    odd = folder("gpt2", tmp_path / "gpt2")
    with pytest.raises(UnsupportedError, match="rotary"):
        edgekit.build(f"hf:{odd}", options=options)
    with pytest.raises(DataError, match="is no text"):
        edgekit.build(f"hf:{llama}", options=options, evaluation="data.npz")


def test_the_manifest_reads_back(built: edgekit.Artifact) -> None:
    document = json.loads((built.directory / "manifest.json").read_text())
    assert document["target"]["task"] == "text-generation"
    assert document["golden"]["file"] == language.FILE
    assert edgekit.open(built.directory).manifest.digest == built.manifest.digest
