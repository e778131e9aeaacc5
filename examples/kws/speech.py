"""Spoken digits (FSDD) as log-mel features.

``EDGEKIT_DATA`` names the folder that holds ``fsdd/fsdd_recordings.tar.xz``: the wav files of
https://github.com/Jakobovski/free-spoken-digit-dataset (CC BY-SA 4.0), ``recordings/{digit}_{speaker}_{index}.wav``.
Indices 0 to 4 are the data set's official test set; of the rest, 45 to 49 are kept for development.
"""

from __future__ import annotations

import functools
import io
import os
import tarfile
import wave
from dataclasses import dataclass
from pathlib import Path

import numpy as np

RATE = 8_000  # Hz
WINDOW, HOP, FRAMES, BANDS = 256, 128, 64, 40  # samples, samples, of one input, mel bands
LENGTH = WINDOW + (FRAMES - 1) * HOP  # 1.04 s: 99 % of the recordings are shorter
PARTS = {"test": range(5), "train": range(5, 45), "dev": range(45, 50)}


@dataclass(frozen=True, kw_only=True)
class Clips:
    """``waves``: float32 in [-1, 1], each of its own length; ``labels``: int64 ``[N]``."""

    waves: tuple[np.ndarray, ...]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


def archive() -> Path:
    """Where the recordings are."""
    root = os.environ.get("EDGEKIT_DATA")
    folder = Path(root) if root else Path(__file__).resolve().parents[3] / "shared" / "data"
    found = folder / "fsdd" / "fsdd_recordings.tar.xz"
    if not found.is_file():
        raise SystemExit(f"no file {found}: set EDGEKIT_DATA (see the head of {Path(__file__).name})")
    return found


@functools.cache
def read(part: str) -> Clips:
    """One of ``train``, ``dev``, ``test``, in the order of the file names."""
    rows = [(name, wav) for name, wav in _recordings() if int(name.split("_")[2]) in PARTS[part]]
    labels = np.array([int(name.split("_")[0]) for name, _ in rows], np.int64)
    return Clips(waves=tuple(wav for _, wav in rows), labels=labels)


@functools.cache
def _recordings() -> tuple[tuple[str, np.ndarray], ...]:
    found = []
    with tarfile.open(archive()) as tar:
        for member in tar:
            file = tar.extractfile(member) if member.name.endswith(".wav") else None
            if file is not None:
                with wave.open(io.BytesIO(file.read())) as wav:
                    samples = np.frombuffer(wav.readframes(wav.getnframes()), "<i2")
                found.append((Path(member.name).stem, samples.astype(np.float32) / 32768))
    return tuple(sorted(found, key=lambda row: row[0]))


def placed(clip: np.ndarray, at: float = 0.5) -> np.ndarray:
    """A clip cut or padded with silence to ``LENGTH``; ``at`` is the share of the silence in front of it."""
    spare = LENGTH - len(clip)
    if spare < 0:
        start = int(at * -spare)
        return clip[start : start + LENGTH]
    front = int(at * spare)
    return np.pad(clip, (front, spare - front))


def log_mel(waves: np.ndarray) -> np.ndarray:
    """Waves ``[N, LENGTH]`` to features float32 ``[N, 1, FRAMES, BANDS]``, about -2 (silence) to 3.

    Energy in Hann windows through triangles evenly spaced on the mel scale, in decibels below full scale,
    nothing below -80; ``(dB + 40) / 20``. No statistics of a data set: an app computes the same from any clip.
    """
    frames = np.lib.stride_tricks.sliding_window_view(waves, WINDOW, axis=-1)[..., ::HOP, :]
    window = np.hanning(WINDOW + 1)[:-1].astype(np.float32)
    power = np.abs(np.fft.rfft(frames * window, axis=-1)) ** 2 / np.sum(window) ** 2
    decibels = 10 * np.log10(np.maximum(power @ _triangles().T, 1e-8))
    return ((decibels + 40) / 20).astype(np.float32)[:, None]


@functools.cache
def _triangles() -> np.ndarray:
    """``[BANDS, WINDOW / 2 + 1]``, from 60 Hz to half the rate."""
    mel = np.linspace(*(2595 * np.log10(1 + f / 700) for f in (60, RATE / 2)), BANDS + 2)
    edges = 700 * (10 ** (mel / 2595) - 1)
    low, middle, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    f = np.linspace(0, RATE / 2, WINDOW // 2 + 1)
    return np.maximum(0, np.minimum((f - low) / (middle - low), (high - f) / (high - middle)))


def features(part: str) -> np.ndarray:
    """The features of a part, each clip in the middle: ``[N, 1, FRAMES, BANDS]``."""
    return log_mel(np.stack([placed(w) for w in read(part).waves]))
