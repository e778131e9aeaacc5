"""The tokenizer of a language model, and its files as runtimes read them."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from edgekit.core.foreign import translated
from edgekit.core.quiet import silence
from edgekit.errors import MissingExtraError, SourceError
from edgekit.load.gguf import alone
from edgekit.load.huggingface import offline
from edgekit.types import Json, SourceSpec


class Tokenizer(Protocol):
    """What is asked of a tokenizer of transformers."""

    chat_template: str | None

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids."""
        ...

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """The text."""
        ...

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Json]],
        *,
        tools: Sequence[Mapping[str, Json]] | None,
        add_generation_prompt: bool,
        tokenize: bool,
    ) -> str:
        """A conversation as the model reads it."""
        ...

    def save_pretrained(self, folder: str) -> object:
        """Write the files."""
        ...


def tokenizer(spec: SourceSpec) -> Tokenizer:
    """The tokenizer of ``hf:DIR`` or of a GGUF file. Nothing is downloaded and no code of its own is run.

    Raises :class:`SourceError` where there is none.
    """
    try:
        import transformers
    except ImportError as error:
        raise MissingExtraError("transformers", "genai") from error
    folder = spec.path.parent if spec.kind == "gguf" and spec.path is not None else spec.path
    if folder is None:
        raise SourceError(
            f"{spec.text} has no folder with a tokenizer",
            hint="give hf:DIR with tokenizer.json in it, or a .gguf file",
        )
    file = spec.path if spec.kind == "gguf" else None
    if file is None and not any(
        (folder / n).is_file() for n in ("tokenizer.json", "vocab.json", "tokenizer.model")
    ):
        raise SourceError(
            f"{folder} has no tokenizer: a language model without one cannot be talked to",
            hint="put tokenizer.json and tokenizer_config.json beside config.json",
        )
    with (
        offline(True),
        silence(),
        translated(f"the tokenizer of {spec.text} cannot be loaded", hint="download it again"),
    ):
        more: dict[str, Any] = {} if file is None else {"gguf_file": file.name}
        with contextlib.nullcontext(folder) if file is None else alone(file) as place:
            found: Tokenizer = transformers.AutoTokenizer.from_pretrained(
                str(place), local_files_only=True, trust_remote_code=False, **more
            )
        return found


def save(words: Tokenizer, out: Path) -> tuple[str, ...]:
    """Write its files into ``out``; their names. The chat template is among them, as ``chat_template.jinja``."""
    before = {p.name for p in out.iterdir()}
    words.save_pretrained(str(out))
    return tuple(sorted(p.name for p in out.iterdir() if p.is_file() and p.name not in before))
