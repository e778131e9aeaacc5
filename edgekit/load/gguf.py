"""``model.gguf``: a language model in one file, its weights widened to float32 by transformers.

The integers that the file really holds are read by :mod:`edgekit.quantize.gguf_blocks`.
"""

from __future__ import annotations

import importlib.util

import torch

from edgekit.errors import MissingExtraError
from edgekit.load import module as modules
from edgekit.load.foreign import translated
from edgekit.load.huggingface import offline
from edgekit.types import Permit, SourceSpec, TorchModel

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
            module = transformers.AutoModelForCausalLM.from_pretrained(
                str(path.parent),
                gguf_file=path.name,
                dtype=torch.float32,
                attn_implementation="eager",
                local_files_only=True,
            )
    module.config.use_cache = False
    ids = torch.arange(_EXAMPLE)[None] % module.config.vocab_size
    model = modules.bind(module, {"input_ids": ids}, what=spec.text)
    return modules.complete(
        model, task="text-generation", dynamic_axes={"input_ids": {0: "batch", 1: "sequence"}}
    )
