"""Folders and files of language models that are not what they say: each a typed error, and nothing of theirs is run."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", reason="language models need the extra genai")
pytest.importorskip("gguf", reason="GGUF files need the extra genai")

import gguf
import numpy as np
import torch
from language_models import folder
from safetensors.torch import load_file, save_file

import edgekit
from edgekit.core import foreign
from edgekit.core.config import Options
from edgekit.core.progress import Silent
from edgekit.core.store import Store
from edgekit.errors import DataError, EdgekitError, SourceError, UnsupportedError
from edgekit.load import gguf as gguf_files
from edgekit.load import spec, texts, tokenizer
from edgekit.load.source import Source
from edgekit.load.texts import Text
from edgekit.pipeline import language_work
from edgekit.types import Permit

TEXT = Text(name="words", content="the words of a text that is long enough. " * 200)


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return folder("llama", tmp_path / "model")


def answers(place: Path, cache: Path) -> object:
    source = Source(spec.parse(f"hf:{place}"), Store(cache))
    return language_work.answers(source, TEXT, 64, Silent())


def set_config(place: Path, name: str = "config.json", **values: object) -> None:
    path = place / name
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def set_weights(place: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(place / "model.safetensors")
    change(weights)
    save_file(weights, place / "model.safetensors", metadata={"format": "pt"})


def test_weights_that_are_missing_are_not_made_up(llama: Path, tmp_path: Path) -> None:
    set_weights(llama, lambda w: w.pop("model.layers.1.mlp.down_proj.weight"))
    with pytest.raises(SourceError, match=r"1 of its weights are missing: model\.layers\.1\.mlp\.down_proj"):
        answers(llama, tmp_path / "cache")


def test_so_are_those_of_another_kind_of_model(tmp_path: Path) -> None:
    import transformers

    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, vocab_size=50
    )
    transformers.BertModel(config).save_pretrained(tmp_path / "bert")
    set_config(tmp_path / "bert", architectures=["BertForSequenceClassification"])
    with pytest.raises(SourceError, match="weights are missing: classifier"):
        edgekit.build(
            f"hf:{tmp_path / 'bert'}", targets="ort-fp32", options=Options(out=tmp_path / "out")
        ).raise_for_failures()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(value: float, llama: Path, tmp_path: Path) -> None:
    set_weights(llama, lambda w: w["model.norm.weight"].fill_(value))
    with pytest.raises(SourceError, match=r"model\.norm\.weight has weights that are no numbers"):
        answers(llama, tmp_path / "cache")


def test_weights_that_float32_cannot_multiply(llama: Path, tmp_path: Path) -> None:
    set_weights(llama, lambda w: w["model.layers.0.mlp.down_proj.weight"].fill_(3e38))
    with pytest.raises(SourceError, match="logits are no numbers"):
        answers(llama, tmp_path / "cache")


@pytest.mark.parametrize(
    "template",
    [
        "{{ 1 // 0 }}",
        "{{ 10 ** 400 * 1.0 }}",
        "{% macro m(n) %}{{ m(n) }}{% endmacro %}{{ m(1) }}",
        "{{ '\\ud800' }}",
        "{% for %}",
        "",
        "{% if false %}x{% endif %}",
    ],
    ids=["division", "overflow", "recursion", "surrogate", "syntax", "none", "nothing"],
)
def test_templates_that_cannot_write(template: str, llama: Path, tmp_path: Path) -> None:
    (llama / "chat_template.jinja").write_text(template)
    if not template:  # a model without one is none that is refused
        assert answers(llama, tmp_path / "cache")
        return
    with pytest.raises(SourceError, match="template"):
        answers(llama, tmp_path / "cache")


@pytest.mark.parametrize("window", [1, 8])
def test_windows_that_hold_no_text(window: int, llama: Path, tmp_path: Path) -> None:
    set_config(llama, max_position_embeddings=window)
    with pytest.raises(UnsupportedError, match=f"a window of {window} tokens"):
        answers(llama, tmp_path / "cache")


@pytest.mark.parametrize("end", ["abc", [3, "x"], -5, 1 << 40])
def test_stop_tokens_that_are_none(end: object, llama: Path, tmp_path: Path) -> None:
    for name in ("config.json", "generation_config.json"):
        set_config(llama, name, eos_token_id=end)
    with pytest.raises(EdgekitError):
        answers(llama, tmp_path / "cache")


def test_a_tokenizer_of_a_larger_model(llama: Path, tmp_path: Path) -> None:
    set_config(llama, vocab_size=64)
    set_weights(
        llama, lambda w: w.update({"model.embed_tokens.weight": w["model.embed_tokens.weight"][:64].clone()})
    )
    with pytest.raises(SourceError, match=r"embeddings has 64 rows|index out of range"):
        answers(llama, tmp_path / "cache")


def test_a_panic_in_rust_is_an_error_like_others() -> None:
    class PanicException(BaseException):
        pass

    with (
        pytest.raises(SourceError, match="refused: it broke"),
        foreign.translated("refused", hint="download it again"),
    ):
        raise PanicException("it broke")
    with pytest.raises(KeyboardInterrupt), foreign.translated("refused", hint="download it again"):
        raise KeyboardInterrupt


# --- GGUF --------------------------------------------------------------------------------------------------


def written(path: Path, *, without: str = "", **settings: int) -> Path:
    """A file of a small Llama. ``without``: a tensor that is left out; ``settings`` replace those of the file."""
    width, inner, heads, layers, words = 32, 64, 4, 1, 64
    writer = gguf.GGUFWriter(path, "llama")
    known = {
        "block_count": layers,
        "context_length": 64,
        "embedding_length": width,
        "feed_forward_length": inner,
        "attention.head_count": heads,
        "attention.head_count_kv": heads,
        "rope.dimension_count": width // heads,
        "vocab_size": words,
    }
    for name, number in (known | settings).items():
        writer.add_uint32(f"llama.{name}", number)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    random = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (words, width),
        "output_norm.weight": (width,),
        "output.weight": (words, width),
        "blk.0.attn_norm.weight": (width,),
        "blk.0.ffn_norm.weight": (width,),
        **{f"blk.0.attn_{n}.weight": (width, width) for n in ("q", "k", "v", "output")},
        **{f"blk.0.ffn_{n}.weight": (inner, width) for n in ("gate", "up")},
        "blk.0.ffn_down.weight": (width, inner),
    }
    for name, shape in shapes.items():
        if name != without:
            writer.add_tensor(name, random.normal(size=shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_the_file_is_read(tmp_path: Path) -> None:
    model = gguf_files.load(spec.parse(str(written(tmp_path / "m.gguf"))), Permit())
    assert model.module.config.num_hidden_layers == 1


def test_a_tensor_that_is_missing_is_not_made_up(tmp_path: Path) -> None:
    path = written(tmp_path / "m.gguf", without="blk.0.ffn_down.weight")
    with pytest.raises(SourceError, match="1 of its weights are missing"):
        gguf_files.load(spec.parse(str(path)), Permit())


@pytest.mark.parametrize(
    "setting",
    ["block_count", "embedding_length", "feed_forward_length", "attention.head_count", "vocab_size"],
)
def test_sizes_that_the_file_cannot_fill_make_no_network(setting: str, tmp_path: Path) -> None:
    path = written(tmp_path / "m.gguf", **{setting: 1_000_000})
    with pytest.raises(SourceError, match=r"1,000,000, and the file has 12 tensors"):
        gguf_files.load(spec.parse(str(path)), Permit())


def test_code_that_lies_beside_the_file_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers reads what lies beside a file, and asks on the terminal whether its code may run."""
    asked: list[str] = []
    monkeypatch.setattr("builtins.input", lambda *words: asked.append(str(words)) or "y")
    ran = tmp_path / "ran"
    place = tmp_path / "models"
    place.mkdir()
    code = f"open({str(ran)!r}, 'w').close()\n"
    (place / "modeling.py").write_text(code + "class M:\n    pass\n")
    (place / "config.json").write_text(
        json.dumps(
            {
                "model_type": "llama",
                "auto_map": {"AutoConfig": "modeling.M", "AutoModelForCausalLM": "modeling.M"},
            }
        )
    )
    (place / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "M", "auto_map": {"AutoTokenizer": ["modeling.M", "modeling.M"]}})
    )
    path = written(place / "m.gguf")
    gguf_files.load(spec.parse(str(path)), Permit())
    with pytest.raises(SourceError):  # it has no words
        tokenizer.tokenizer(spec.parse(str(path)))
    assert not ran.exists()
    assert asked == []


def test_nor_is_that_of_a_tokenizer(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("builtins.input", lambda *words: asked.append(str(words)) or "y")
    ran = tmp_path / "ran"
    (llama / "words.py").write_text(f"open({str(ran)!r}, 'w').close()\nclass W:\n    pass\n")
    set_config(
        llama,
        "tokenizer_config.json",
        tokenizer_class="W",
        auto_map={"AutoTokenizer": ["words.W", "words.W"]},
    )
    outcome: Any = None
    with contextlib.suppress(SourceError):
        outcome = tokenizer.tokenizer(spec.parse(f"hf:{llama}"))
    assert outcome is None or type(outcome).__module__.startswith("transformers.")
    assert not ran.exists()
    assert asked == []


# --- texts -------------------------------------------------------------------------------------------------


def test_what_is_no_file_of_text_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "zero.txt").symlink_to("/dev/zero")
    (tmp_path / "folder.txt").mkdir()
    (tmp_path / "latin.txt").write_bytes(b"\xe9t\xe9")
    with (tmp_path / "huge.txt").open("wb") as file:
        file.truncate(1 << 40)
    for name in ("pipe", "zero", "folder", "latin", "huge", "absent"):
        with pytest.raises(DataError, match=name):
            texts.given(str(tmp_path / f"{name}.txt"), part=1)
