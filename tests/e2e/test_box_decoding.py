"""Boxes that are decoded in the graph, as face detectors do, stay where they are in INT8."""

from __future__ import annotations

import platform

import numpy as np
import pytest
import torch
from box_decoding import Faces, mean_overlap, pictures, trained

import edgekit as api
from edgekit.devices.agent import state

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def answers(network: Faces, rows: list[np.ndarray]) -> list[dict[str, np.ndarray]]:
    with torch.inference_mode():
        found = [network(torch.from_numpy(row)) for row in rows]
    return [{"scores": s.numpy(), "boxes": b.numpy()} for s, b in found]


def test_boxes_stay_where_they_are(tmp_path):
    network, rows = trained(), list(pictures(64, 2))
    result = api.build(
        network,
        targets=["tflite-int8", "ort-int8", "openvino-int8"],
        calibration=list(pictures(64, 1)),
        evaluation=rows,
        out=tmp_path,
        options=api.Options(speed_gate=False),
    )
    assert not result.failures
    expected = answers(network, rows)
    found = {a.target: mean_overlap(expected, list(a.predict(rows))) for a in result.artifacts}
    print(found)
    assert found["tflite-int8"] >= 0.95
    if "vnni" in state.isa() or platform.machine() != "x86_64":  # elsewhere UINT8 x INT8 sums saturate
        assert min(found.values()) >= 0.95
