"""The spoken digits on a reduced size: features, training, INT8 on every runtime."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from edgekit.quantize.calibrate.codes import CODES

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "kws"
MODULES = ("speech", "model", "data", "kws")

pytestmark = [pytest.mark.e2e, pytest.mark.data]


@pytest.fixture
def example(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[ModuleType, ModuleType, ModuleType]]:
    """``speech``, ``model`` and ``kws`` on real recordings, with a cache of their own."""
    if not (data / "fsdd" / "fsdd_recordings.tar.xz").is_file():
        pytest.skip(f"no fsdd/fsdd_recordings.tar.xz in {data}; EDGEKIT_DATA names the folder")
    monkeypatch.setenv("EDGEKIT_DATA", str(data))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(str(EXAMPLE))
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    speech, model, _, kws = (importlib.import_module(name) for name in MODULES)
    yield speech, model, kws
    for name in MODULES:
        sys.modules.pop(name, None)


def test_recordings_are_split_as_their_authors_say(example: tuple[ModuleType, ...]) -> None:
    speech = example[0]
    parts = {name: speech.read(name) for name in speech.PARTS}
    assert {name: len(clips) for name, clips in parts.items()} == {"test": 300, "train": 2400, "dev": 300}
    assert all(
        (clips.labels == digit).sum() * 10 == len(clips) for clips in parts.values() for digit in range(10)
    )
    features = speech.features("test")
    assert features.shape == (300, 1, speech.FRAMES, speech.BANDS)
    assert features.min() >= -2
    assert features.max() < 4


@pytest.mark.slow
def test_reduced(example: tuple[ModuleType, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speech, model, kws = example
    whole = speech.read

    def few(part: str) -> object:
        clips, every = whole(part), {"train": 4, "dev": 6, "test": 3}[part]
        return speech.Clips(waves=clips.waves[::every], labels=clips.labels[::every])

    monkeypatch.setattr(speech, "read", few)
    monkeypatch.setattr(model, "TRAINING", dataclasses.replace(model.TRAINING, epochs=14.0, rate=1e-2))
    monkeypatch.setattr(model, "DsCnn", functools.partial(model.DsCnn, width=32, blocks=2))
    found = model.digits()
    features = speech.features("test")
    samples = [({"features": f[None]}, int(y)) for f, y in zip(features, few("test").labels, strict=True)]
    result = kws.edgekit.build(
        found.module,
        dict(found.example_inputs),
        targets=["ort-int8", "openvino-int8", "tflite-int8"],
        calibration=[{"features": f[None]} for f in speech.features("train")[::6]],
        evaluation=samples,
        out=tmp_path / "out",
        options=kws.edgekit.Options(accept_data=CODES, max_drop=0.05, speed_gate=False),
    )
    for artifact in result.raise_for_failures().artifacts:
        row = kws.row(artifact)
        assert row["clips"] == 100
        assert row["accuracy_fp32"] > 25  # a tenth would be chance
        assert row["accuracy"] >= row["accuracy_fp32"] - 5
        assert artifact.manifest.placement.share > 0.9
