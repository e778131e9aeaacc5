"""Streaming networks trained on speech: what passes in INT8 decides the same on a stream that no build saw."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("openvino")
pytest.importorskip("ai_edge_litert")

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

from stream_decisions import LEAST, rows
from stream_networks import Speech, trained

TARGETS = ("ort-int8", "openvino-int8", "tflite-int8")

pytestmark = [pytest.mark.e2e, pytest.mark.data, pytest.mark.slow]


@pytest.fixture(scope="module")
def speech(data: Path) -> Speech:
    archive = data / "fsdd" / "fsdd_recordings.tar.xz"
    if not archive.is_file():
        pytest.skip(f"no {archive.name} in {archive.parent}; EDGEKIT_DATA names the folder above")
    return Speech(archive)


@pytest.mark.parametrize(
    "name", ["gru-detector-logit", "gru-detector-chunks", "lstm-detector", "conv-spotter-logits"]
)
def test_what_passes_decides_the_same_over_a_minute(name: str, speech: Speech) -> None:
    """ONNX Runtime and OpenVINO have no GRU and LSTM on integers, and say so."""
    found = list(rows(name, trained(name, speech, 150), TARGETS, speech))
    passed = [r for r in found if r.agree is not None]
    assert "tflite-int8" in {r.target for r in passed}
    for row in passed:
        assert row.gated is not None
        assert row.agree >= LEAST, row
    assert all("placement" in r.refused or "decisions" in r.refused for r in found if r.agree is None)
