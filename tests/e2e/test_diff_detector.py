"""Boxes and scores under one scale: diff names the operator that joins them, and its first proposal mends it."""

from __future__ import annotations

import pytest
from cli_process import edgekit

import edgekit as api

pytestmark = [pytest.mark.e2e]


def test_the_join_is_named_and_the_first_proposal_works(root, tmp_path):
    source = f"{root}/tests/e2e/sources.py"
    argv = (
        *("build", f"{source}:detector", "-t", "tflite-int8", "--calib", f"{source}:pictures"),
        *("--eval", f"{source}:pictures", "--no-speed-gate", "-o", tmp_path),
    )
    refused = edgekit(*argv, "--set", "io_dtype=int8")
    assert refused.code == 5
    assert "slices" in refused.err
    found = api.open(tmp_path / "tflite-int8.failed").diff(options=api.Options(trust=True))
    start = found.walk.starts_at
    assert start is not None
    assert (start.op, start.loses) == ("Concat", True)
    assert found.suggestions[0].flags == ("--set", "io_dtype=float32")
    mended = edgekit(*argv, *found.suggestions[0].flags)
    assert mended.code == 0, mended.err
