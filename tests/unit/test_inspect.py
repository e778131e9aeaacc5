"""Files that are not what they say are the user's error, never a defect."""

from __future__ import annotations

import random

import pytest

from edgekit.artifact.inspect import inspect_file
from edgekit.errors import SourceError


def test_what_is_no_model(tmp_path):
    with pytest.raises(SourceError, match="there is no file"):
        inspect_file(tmp_path / "model.onnx")
    (tmp_path / "model.bin").write_bytes(b"0123456789")
    with pytest.raises(SourceError, match="is no model"):
        inspect_file(tmp_path / "model.bin")


def test_whatever_follows_tflites_mark_is_damaged(tmp_path):
    pytest.importorskip("ai_edge_litert")
    draw, file = random.Random(0), tmp_path / "model.tflite"
    for size in (0, 1, 4, 16, 100, 1000):
        for _ in range(20):
            file.write_bytes(draw.randbytes(4) + b"TFL3" + draw.randbytes(size))
            with pytest.raises(SourceError, match="damaged"):
                inspect_file(file)
        file.write_bytes(b"\x08\0\0\0TFL3" + bytes(size))
        with pytest.raises(SourceError, match="damaged"):
            inspect_file(file)
