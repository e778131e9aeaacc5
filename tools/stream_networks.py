"""Streaming networks trained on real speech: voice detectors and keyword spotters that take a frame and their states.

Recordings of the Free Spoken Digit Dataset (8 kHz) are put into streams with pauses, each word at its own level, in
coloured noise whose level wanders; features are log-mel energies every 10 ms. A detector says whether somebody speaks,
a spotter which digit is being said, or none. Minutes of training: their decisions mean something, no more.
"""

from __future__ import annotations

import io
import os
import tarfile
import wave
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("EDGEKIT_DATA") or ROOT.parent / "shared" / "data")
RATE, HOP, WINDOW, BANDS = 8000, 80, 200, 32
NONE = 10
"""The class of a frame in which no digit is being said."""
TESTED = 10
"""Recordings below this index are in no stream that was trained or calibrated on."""


@dataclass(frozen=True, kw_only=True)
class Stream:
    """``features`` ``[frames, BANDS]``; by frame whether somebody speaks, and which digit."""

    features: np.ndarray
    speech: np.ndarray
    digit: np.ndarray


class Speech:
    """Streams out of the recordings; ``tested`` ones from others than those that are trained on."""

    def __init__(self, archive: Path = DATA / "fsdd" / "fsdd_recordings.tar.xz") -> None:
        clips = list(_recordings(archive))
        self._known = [(d, x) for d, i, x in clips if i >= TESTED]
        self._tested = [(d, x) for d, i, x in clips if i < TESTED]

    def stream(self, seconds: float, seed: int, *, tested: bool = False) -> Stream:
        """Each seed is another stream."""
        random = np.random.default_rng(seed)
        clips = self._tested if tested else self._known
        total = int(seconds * RATE) + WINDOW
        sound, digit = np.zeros(total, np.float32), np.full(total, NONE)
        at = int(random.uniform(0.2, 1) * RATE)
        while True:
            label, clip = clips[random.integers(len(clips))]
            if at + len(clip) >= total:
                break
            sound[at : at + len(clip)] = clip * random.uniform(0.15, 0.9)
            digit[at + int(0.6 * len(clip)) : at + len(clip)] = label  # by then most of it was heard
            at += len(clip) + int(random.exponential(0.6) * RATE) + 400
        energy = np.convolve(sound**2, np.ones(400) / 400, "same")
        features = _log_mel(sound + _noise(random, total))
        centres = np.arange(len(features)) * HOP + WINDOW // 2
        return Stream(features=features, speech=energy[centres] > 2e-4, digit=digit[centres])


def _recordings(archive: Path) -> Iterator[tuple[int, int, np.ndarray]]:
    with tarfile.open(archive) as tar:
        for member in sorted(tar, key=lambda m: m.name):
            file = tar.extractfile(member) if member.name.endswith(".wav") else None
            if file is None:
                continue
            with wave.open(io.BytesIO(file.read())) as recording:
                pcm = np.frombuffer(recording.readframes(recording.getnframes()), np.int16)
            digit, _, index = Path(member.name).stem.split("_")
            yield int(digit), int(index), (pcm / max(np.abs(pcm).max(), 1)).astype(np.float32)


def _noise(random: np.random.Generator, total: int) -> np.ndarray:
    levels = random.uniform(np.log(0.003), np.log(0.05), 12)
    level = np.exp(np.interp(np.arange(total), np.linspace(0, total, 12), levels))
    coloured = np.convolve(
        random.standard_normal(total), np.exp(-np.arange(60) / random.uniform(2, 15)), "same"
    )
    return (level * coloured / coloured.std()).astype(np.float32)


def _bank() -> np.ndarray:
    """Triangles of equal width in mel between 60 and 3,900 Hz: ``[bins, BANDS]``."""
    bins = np.linspace(0, RATE / 2, WINDOW // 2 + 1)[:, None]
    low, high = (2595 * np.log10(1 + f / 700) for f in (60, 3900))
    edges = 700 * (10 ** (np.linspace(low, high, BANDS + 2) / 2595) - 1)
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    return np.maximum(0, np.minimum(rising, falling))


def _log_mel(sound: np.ndarray) -> np.ndarray:
    frames = np.lib.stride_tricks.sliding_window_view(sound, WINDOW)[::HOP]
    power = np.abs(np.fft.rfft(frames * np.hanning(WINDOW))) ** 2
    return ((np.log(power @ _bank() + 1e-5) + 5) / 3).astype(np.float32)


class Detector(nn.Module):
    """A voice detector: ``steps`` frames and the state of a GRU -> a score a frame, or its logit."""

    decides = "speech"

    def __init__(self, *, logit: bool = False, steps: int = 1, width: int = 64) -> None:
        super().__init__()
        self.first, self.gru = nn.Linear(BANDS, 48), nn.GRU(48, width, batch_first=True)
        self.head, self.logit = nn.Linear(width, 1), logit
        self.example = {"frame": (1, steps, BANDS), "state": (1, 1, width)}

    def forward(self, frame: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        y, state = self.gru(torch.relu(self.first(frame)), state)
        score = self.head(y)[..., 0]
        return score if self.logit else torch.sigmoid(score), state

    def sequence(self, x: Tensor) -> Tensor:
        """Logits of a whole stream."""
        return self.head(self.gru(torch.relu(self.first(x)))[0])[..., 0]


class Layered(nn.Module):
    """A voice detector with two layers of LSTM behind a convolution."""

    decides = "speech"

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.first, self.lstm = nn.Conv1d(BANDS, 48, 1), nn.LSTM(48, width, 2, batch_first=True)
        self.head = nn.Sequential(nn.Linear(width, 24), nn.ReLU(), nn.Linear(24, 1))
        self.example = {"frame": (1, 1, BANDS), "h0": (2, 1, width), "c0": (2, 1, width)}

    def _features(self, x: Tensor) -> Tensor:
        return torch.relu(self.first(x.transpose(1, 2))).transpose(1, 2)

    def forward(self, frame: Tensor, h0: Tensor, c0: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y, (h, c) = self.lstm(self._features(frame), (h0, c0))
        return torch.sigmoid(self.head(y)[..., 0]), h, c

    def sequence(self, x: Tensor) -> Tensor:
        """Logits of a whole stream."""
        return self.head(self.lstm(self._features(x))[0])[..., 0]


class Spotter(nn.Module):
    """A keyword spotter of causal depthwise convolutions, whose past frames are the states."""

    decides = "digit"
    dilations = (1, 2, 4, 8)

    def __init__(self, *, logits: bool = False, channels: int = 64, kernel: int = 5) -> None:
        super().__init__()
        self.first, self.logits = nn.Conv1d(BANDS, channels, 1), logits
        self.depthwise = nn.ModuleList(
            nn.Conv1d(channels, channels, kernel, dilation=d, groups=channels) for d in self.dilations
        )
        self.pointwise = nn.ModuleList(nn.Conv1d(channels, channels, 1) for _ in self.dilations)
        self.norms = nn.ModuleList(nn.BatchNorm1d(channels) for _ in self.dilations)
        self.head, self.past = nn.Linear(channels, NONE + 1), [(kernel - 1) * d for d in self.dilations]
        self.example = {"frame": (1, BANDS, 1)} | {
            f"cache{i}": (1, channels, past) for i, past in enumerate(self.past)
        }

    def _layer(self, i: int, x: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        whole = torch.cat([before, x], 2)
        y = torch.relu(self.depthwise[i](whole))
        return x + torch.relu(self.norms[i](self.pointwise[i](y))), whole[:, :, -self.past[i] :]

    def forward(
        self, frame: Tensor, cache0: Tensor, cache1: Tensor, cache2: Tensor, cache3: Tensor
    ) -> tuple[Tensor, ...]:
        x, after = torch.relu(self.first(frame)), []
        for i, cache in enumerate((cache0, cache1, cache2, cache3)):
            x, new = self._layer(i, x, cache)
            after.append(new)
        scores = self.head(x.transpose(1, 2))  # [1, 1, classes]
        return (scores if self.logits else torch.softmax(scores, -1), *after)

    def sequence(self, x: Tensor) -> Tensor:
        """Logits of a whole stream."""
        x = torch.relu(self.first(x.transpose(1, 2)))
        for i, past in enumerate(self.past):
            x, _ = self._layer(i, x, x.new_zeros(len(x), x.shape[1], past))
        return self.head(x.transpose(1, 2))


NETWORKS: Mapping[str, Callable[[], nn.Module]] = {
    "gru-detector": Detector,
    "gru-detector-logit": lambda: Detector(logit=True),
    "gru-detector-chunks": lambda: Detector(steps=4),
    "lstm-detector": Layered,
    "conv-spotter": Spotter,
    "conv-spotter-logits": lambda: Spotter(logits=True),
}


def trained(name: str, speech: Speech, steps: int) -> nn.Module:
    """The network after ``steps`` batches of 16 cuts of 1.5 s."""
    torch.manual_seed(0)
    module = NETWORKS[name]()
    random, length = np.random.default_rng(7), 150
    pool = [speech.stream(30, seed) for seed in range(100, 140)]
    optimizer = torch.optim.Adam(module.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        cuts = [
            (pool[i], random.integers(len(pool[0].features) - length)) for i in random.integers(40, size=16)
        ]
        x = torch.from_numpy(np.stack([s.features[a : a + length] for s, a in cuts]))
        wanted = torch.from_numpy(np.stack([getattr(s, module.decides)[a : a + length] for s, a in cuts]))
        logits, wanted = module.sequence(x)[:, 40:], wanted[:, 40:]
        loss = (
            nn.functional.binary_cross_entropy_with_logits(logits, wanted.float())
            if module.decides == "speech"
            else nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten())
        )
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return module.eval()


def samples(module: nn.Module, stream: Stream) -> list[dict[str, np.ndarray]]:
    """What the network takes, step by step, each beginning with states of zeros."""
    shapes = dict(module.example)
    shape = shapes.pop("frame")
    steps = int(np.prod(shape)) // BANDS
    states = {name: np.zeros(s, np.float32) for name, s in shapes.items()}
    whole = stream.features[: len(stream.features) // steps * steps].reshape(-1, *shape)
    return [{"frame": frame, **states} for frame in whole]


def decisions(module: nn.Module, outputs: list[np.ndarray]) -> np.ndarray:
    """What the outputs, step by step, decide."""
    if module.decides == "speech":
        return np.concatenate([o.reshape(-1) for o in outputs]) >= (
            0.0 if getattr(module, "logit", False) else 0.5
        )
    return np.concatenate([o.reshape(-1, NONE + 1) for o in outputs]).argmax(1)
