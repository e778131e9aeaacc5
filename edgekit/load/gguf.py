"""``model.gguf``: a language model in one file, its weights widened to float32 by transformers.

The integers that the file really holds are read by :mod:`edgekit.quantize.gguf_blocks`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from edgekit.core.foreign import translated
from edgekit.core.quiet import silence
from edgekit.errors import MissingExtraError, SourceError
from edgekit.load import module as modules
from edgekit.load.gguf_reader import open_gguf
from edgekit.load.huggingface import offline
from edgekit.load.huggingface_sizes import refuse_missing
from edgekit.types import Permit, SourceSpec, TorchModel


@contextlib.contextmanager
def alone(path: Path) -> Iterator[Path]:
    """A folder with nothing but the file in it: transformers also reads what lies beside a file, its code too."""
    with tempfile.TemporaryDirectory(prefix="edgekit-gguf-") as folder:
        (Path(folder) / path.name).symlink_to(path.resolve())
        yield Path(folder)


def _refuse_hollow(path: Path) -> None:
    """Raise :class:`SourceError` where the file's settings ask for more layers, or wider ones, than it has tensors and
    values: a network is made of them before its weights are read."""
    reader = open_gguf(path)
    tensors, values = len(reader.tensors), sum(int(t.n_elements) for t in reader.tensors)
    for name, field in reader.fields.items():
        if name.endswith("context_length"):
            continue
        most = tensors if name.endswith(".block_count") else values if name.endswith(_SIZES) else None
        if most is None:
            continue
        given = field.contents()
        for number in given if isinstance(given, list) else [given]:
            if isinstance(number, int) and number > most:
                raise SourceError(
                    f"{path}: {name} is {number:,}, and the file has {tensors:,} tensors of {values:,} values",
                    hint="download the file again, from somebody whom you trust",
                )


_SIZES = ("_length", "_count", ".head_count_kv", ".vocab_size")
"""Ends of the names of settings that are sizes of weights; ``context_length`` is none."""
_PACKAGES = ("transformers", "gguf", "accelerate")
_EXAMPLE = 16


def load(spec: SourceSpec, permit: Permit) -> TorchModel:
    """The causal language model of the file. See :func:`edgekit.load.load`.

    Raises :class:`MissingExtraError` without transformers, gguf and accelerate, :class:`SourceError` for a file that
    transformers does not read.
    """
    del permit  # the file carries no code, and nothing is downloaded
    path = spec.path
    assert path is not None
    for name in _PACKAGES:
        if importlib.util.find_spec(name) is None:
            raise MissingExtraError(name, "genai")
    with offline(True):
        import transformers

        transformers.utils.logging.disable_progress_bar()
        with translated(
            f"{spec.text} cannot be read", hint="transformers reads GGUF files of the usual decoders"
        ):
            _refuse_hollow(path)
            with alone(path) as folder, silence():  # bars that no setting switches off
                module, found = transformers.AutoModelForCausalLM.from_pretrained(
                    str(folder),
                    gguf_file=path.name,
                    output_loading_info=True,
                    dtype=torch.float32,
                    attn_implementation="eager",
                    local_files_only=True,
                    trust_remote_code=False,
                )
            refuse_missing(spec.text, found)
    module.config.use_cache = False
    ids = torch.arange(_EXAMPLE)[None] % module.config.vocab_size
    model = modules.bind(module, {"input_ids": ids}, what=spec.text)
    return modules.complete(
        model, task="text-generation", dynamic_axes={"input_ids": {0: "batch", 1: "sequence"}}
    )
