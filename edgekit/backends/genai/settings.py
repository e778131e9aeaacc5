"""What ``genai_config.json`` may say: what edgekit writes there, and nothing else.

onnxruntime-genai obeys the file: it loads libraries of operators that it names (``custom_ops_library``), writes
profiles to paths that it names (``enable_profiling``), opens other files. A received artifact may say none of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from edgekit.core import files
from edgekit.errors import SourceError
from edgekit.types import Json

CONFIG = "genai_config.json"
KIND = "llama"
"""The runtime's name for a plain decoder: it tells the tokenizer and the layout of the cache, not the graph."""

SESSION: Json = {"log_id": "onnxruntime-genai", "provider_options": []}
INPUTS: Json = {
    "input_ids": "input_ids",
    "attention_mask": "attention_mask",
    "past_key_names": "past_key_values.%d.key",
    "past_value_names": "past_key_values.%d.value",
}
OUTPUTS: Json = {
    "logits": "logits",
    "present_key_names": "present.%d.key",
    "present_value_names": "present.%d.value",
}
"""The runtime's session, and the names of the graph's inputs and outputs."""
_MOST_BYTES = 1 << 20
_NUMBER, _FLAG, _NUMBERS = "a number", "true or false", "whole numbers"
_COUNT = 1 << 31

_DECODER: Mapping[str, object] = {
    "session_options": SESSION,
    "inputs": INPUTS,
    "outputs": OUTPUTS,
    **dict.fromkeys(
        ("head_size", "hidden_size", "num_attention_heads", "num_hidden_layers", "num_key_value_heads"),
        _NUMBER,
    ),
}
_MODEL: Mapping[str, object] = {
    "type": KIND,
    "eos_token_id": _NUMBERS,
    **dict.fromkeys(("bos_token_id", "context_length", "pad_token_id", "vocab_size"), _NUMBER),
}
_SEARCH: Mapping[str, object] = {
    **dict.fromkeys(("do_sample", "past_present_share_buffer"), _FLAG),
    **dict.fromkeys(
        (
            *("max_length", "num_beams", "num_return_sequences", "repetition_penalty"),
            *("temperature", "top_k", "top_p"),
        ),
        _NUMBER,
    ),
}


def refuse(main: Path) -> None:
    """Raise :class:`SourceError` where the settings beside ``main`` say anything that edgekit does not write, or name
    another file than ``main``."""
    path = main.parent / CONFIG
    try:
        document = json.loads(files.read(path, most=_MOST_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise SourceError(f"{path} cannot be read: {error}", hint="build the artifact again") from error
    known = {"model": {**_MODEL, "decoder": {**_DECODER, "filename": main.name}}, "search": _SEARCH}
    for what in _wrong("", document, known):
        raise SourceError(
            f"{path}: {what}, which edgekit does not write there and the runtime would obey",
            hint="it is not as it was built: build it again, or ask the sender",
        )


def _wrong(place: str, value: Json, known: object) -> Iterator[str]:
    if isinstance(known, Mapping) and known not in (SESSION, INPUTS, OUTPUTS):
        if not isinstance(value, Mapping):
            yield f"{place or 'it'} is {json.dumps(value)[:80]}"
            return
        for key, inner in value.items():
            where = f"{place}.{key}" if place else str(key)
            if key in known:
                yield from _wrong(where, inner, known[key])
            else:
                yield f"{where[:80]!r} is set"
    elif not _fits(value, known):
        yield f"{place} is {json.dumps(value)[:80]}"


def _fits(value: Json, known: object) -> bool:
    if known == _FLAG:
        return isinstance(value, bool)
    if known == _NUMBER:
        return isinstance(value, int | float) and not isinstance(value, bool) and -1 <= value < _COUNT
    if known == _NUMBERS:
        whole = value if isinstance(value, list) else [value]
        return all(isinstance(i, int) and not isinstance(i, bool) and 0 <= i < _COUNT for i in whole)
    return value == known
