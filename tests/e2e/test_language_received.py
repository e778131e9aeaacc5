"""A language model's artifact from somebody else: its settings make the runtime run a model and nothing more, and its
golden answers prove only what they say. Also what may be typed at ``edgekit chat``."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", reason="language models need the extra genai")
pytest.importorskip("onnxruntime_genai", reason="needs the extra genai")

from cli_process import edgekit

import edgekit as api
from edgekit.artifact import language, manifest, talk
from edgekit.backends.genai.settings import CONFIG
from edgekit.core.config import Options
from edgekit.errors import SourceError
from edgekit.types import sha256_file

sys.path.insert(0, str(Path(__file__).parents[1] / "ops"))
from language_models import folder

pytestmark = [pytest.mark.e2e]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = folder("llama", tmp_path_factory.mktemp("llama") / "model")
    options = Options(
        target=("ort-genai-fp32",), out=tmp_path_factory.mktemp("out"), set={"eval_tokens": 150}
    )
    (artifact,) = api.build(f"hf:{source}", options=options).raise_for_failures().artifacts
    return artifact.directory


@pytest.fixture
def copy(built: Path, tmp_path: Path) -> Path:
    shutil.copytree(built, tmp_path / "copy")
    return tmp_path / "copy"


def edited(place: Path, name: str, change: Callable[[Any], object]) -> Path:
    """The folder with a JSON file of it changed, and every checksum that speaks of it, too."""
    document = json.loads((place / name).read_text())
    change(document)
    (place / name).write_text(json.dumps(document))
    record = json.loads((place / "manifest.json").read_text())
    for row in (*record["files"], record["golden"]):
        row["sha256"] = sha256_file(place / (row.get("name") or row["file"]))
        if "size" in row:
            row["size"] = (place / row["name"]).stat().st_size
    (place / "manifest.json").write_text(json.dumps(record))
    return place


def deep(document: dict[str, Any], path: str, value: object) -> None:
    *way, last = path.split("/")
    for key in way:
        document = document.setdefault(key, {})
    document[last] = value


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("model/decoder/session_options/custom_ops_library", "./evil.so"),
        ("model/decoder/session_options/enable_profiling", "/tmp/edgekit-profile"),
        ("model/decoder/session_options/provider_options", [{"cuda": {}}]),
        ("model/decoder/session_options/config_entries", {"session.x": "1"}),
        ("model/decoder/run_options", {"enable_profiling": "x"}),
        ("model/decoder/filename", "../other/model.onnx"),
        ("model/decoder/filename", "other.onnx"),
        ("model/decoder/pipeline", [{"a": {"filename": "b.onnx"}}]),
        ("model/decoder/inputs/input_ids", "other"),
        ("model/embedding", {"filename": "x.onnx"}),
        ("model/speech", {"config_filename": "/etc/passwd"}),
        ("model/type", "whisper"),
        ("model/type", ["llama"]),
        ("model/context_length", 1 << 40),
        ("model/vocab_size", "many"),
        ("model/eos_token_id", [-1]),
        ("search/max_length", True),
        ("search/other", 1),
        ("engine", {"static_batching": {}}),
        ("model", []),
    ],
)
def test_settings_that_edgekit_does_not_write(path: str, value: object, copy: Path) -> None:
    edited(copy, CONFIG, lambda d: deep(d, path, value))
    artifact = api.open(copy)
    with pytest.raises(SourceError, match="genai_config"):
        artifact.verify()
    with pytest.raises(SourceError, match="genai_config"):
        talk.opened(manifest.read(copy))


def test_no_command_loads_a_library_that_the_settings_name(copy: Path) -> None:
    trap = copy / "evil.so"
    trap.write_bytes(b"no library: that it is opened is an error of another kind")
    edited(copy, CONFIG, lambda d: deep(d, "model/decoder/session_options/custom_ops_library", str(trap)))
    for command in (["verify", copy], ["chat", copy, "--prompt", "x"], ["bench", copy]):
        result = edgekit(*command)
        assert result.code == 3, result.err
        assert "custom_ops_library" in result.err


def test_settings_that_are_no_json(copy: Path) -> None:
    edited(copy, CONFIG, lambda d: None)
    (copy / CONFIG).write_text("{" * 100_000)
    edited(copy, language.FILE, lambda d: None)
    with pytest.raises(SourceError, match="cannot be read"):
        api.open(copy).verify()


# --- golden answers ----------------------------------------------------------------------------------------


def _cut(document: Any) -> None:
    document["passages"] = document["passages"][:1]
    (row,) = document["passages"]
    end = row["prompt"] + 4
    row.update(tokens=row["tokens"][:end], logprob=row["logprob"][:4], best=row["best"][:5])


def _each(value: object) -> Callable[[Any], None]:
    def change(document: Any) -> None:
        for row in document["passages"]:
            row["logprob"] = [value] * len(row["logprob"])

    return change


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda d: d.update(passages=[]), "no passages"),
        (lambda d: d["passages"][0].update(logprob=[]), "no passages"),
        (lambda d: d["passages"][0].update(best=[]), "no passages"),
        (lambda d: d["passages"][0].update(prompt=0), "no passages"),
        (lambda d: d["passages"][0].update(prompt=-3), "no passages"),
        (lambda d: d.update(continuations=[]), "no continuations"),
        (lambda d: d["continuations"][0].update(continuation=[]), "no continuations"),
        (lambda d: d["continuations"][0].update(tokens=[]), "no continuations"),
        (lambda d: d["continuations"][0].update(tokens=[-1]), "no vocabulary"),
        (lambda d: d["continuations"][0].update(tokens=[1 << 40]), "no vocabulary"),
        (lambda d: d.update(window=10**12), "window of 1000000000000"),
        (lambda d: d.update(window=1), "window of 1 "),
        (_each(-1e308), "log-probabilities"),
        (_each(0.5), "log-probabilities"),
        (_each("x"), "no answers"),
    ],
)
def test_answers_that_say_nothing_are_refused(change: Callable[[Any], None], what: str, copy: Path) -> None:
    edited(copy, language.FILE, change)
    with pytest.raises(SourceError, match=what):
        api.open(copy).verify()


def test_answers_that_nothing_could_miss_fail(copy: Path) -> None:
    replay = api.open(edited(copy, language.FILE, _each(-50.0))).verify()
    assert replay.status == "failed"
    assert {g.name: g.verdict for g in replay.gates}["perplexity"] == "fail"


@pytest.mark.parametrize(
    ("change", "gate"),
    [
        (lambda d: d.update(words=[]), "tokenizer"),
        (lambda d: d.update(chats=[]), "chat-template"),
        (_cut, "perplexity"),
    ],
)
def test_answers_that_say_little_prove_little(change: Callable[[Any], None], gate: str, copy: Path) -> None:
    replay = api.open(edited(copy, language.FILE, change)).verify()
    assert replay.status == "unproven"
    assert {g.name: g.verdict for g in replay.gates}[gate] == "unproven"


# --- chat --------------------------------------------------------------------------------------------------


def test_an_answer_ends_with_the_window_whatever_was_asked_for(built: Path) -> None:
    result = edgekit("chat", built, "--prompt", "x", "--max-tokens", "1000000")
    assert result.code == 0, result.err
    result = edgekit("chat", built, "--prompt", "word " * 500)
    assert result.code == 6, result.err
    assert "window" in result.err


def test_numbers_that_no_machine_has(built: Path) -> None:
    for option, number in (("--threads", "999999"), ("--max-tokens", "99999999999999999999")):
        assert edgekit("chat", built, "--prompt", "x", option, number).code == 2


def test_bytes_that_are_no_text(built: Path) -> None:
    command = [sys.executable, "-m", "edgekit", "chat", str(built), "--max-tokens", "4"]
    done = subprocess.run(command, input=b"\xff\xfe\x80 x\n", capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    command += ["--prompt", os.fsdecode(b"\xff x")]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_a_reader_that_goes_away_is_no_defect(built: Path) -> None:
    """As of every program that writes to a pipe: 128 and the number of SIGPIPE."""
    command = [sys.executable, "-m", "edgekit", "chat", str(built), "--prompt", "x"]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert done.returncode == 141, done.stderr
    assert b"Traceback" not in done.stderr
