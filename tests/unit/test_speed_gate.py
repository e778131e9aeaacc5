"""Slower than float: where that refuses, where it says little, and what the message names."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edgekit.core import targets
from edgekit.pipeline.speed import Speed, gate
from edgekit.types import Verdict

TFLITE, ORT = targets.find("tflite-int8"), targets.find("ort-int8")
SLOW = Speed(
    sibling="float", ratio=2.0, low=1.9, high=2.1, verdict="slower", detectable=0.05,
    p50_ms=4.0, sibling_p50_ms=2.0, validity="VALID",
)  # fmt: skip
SMALL = replace(SLOW, p50_ms=0.09, sibling_p50_ms=0.03, ratio=3.0)


@pytest.mark.parametrize(
    ("speed", "target", "arch", "device", "verdict"),
    [
        (SLOW, TFLITE, "x86_64", "", Verdict.UNPROVEN),
        (SLOW, TFLITE, "AMD64", "", Verdict.UNPROVEN),
        (SLOW, TFLITE, "aarch64", "", Verdict.FAIL),
        (SLOW, TFLITE, "arm64", "", Verdict.FAIL),
        (SLOW, TFLITE, "x86_64", "local", Verdict.FAIL),
        (SLOW, ORT, "x86_64", "", Verdict.FAIL),
        (SMALL, ORT, "x86_64", "", Verdict.UNPROVEN),
        (SMALL, ORT, "x86_64", "pi5", Verdict.FAIL),
        (SMALL, TFLITE, "aarch64", "", Verdict.UNPROVEN),
        (replace(SLOW, verdict="no detectable difference", ratio=1.01), ORT, "x86_64", "pi5", Verdict.PASS),
    ],
)
def test_slower_beyond_doubt_is_refused_where_it_counts(speed, target, arch, device, verdict):
    found = gate(speed, None, target, device=device, arch=arch)
    assert found.verdict is verdict
    if verdict is Verdict.UNPROVEN:
        assert "--no-speed-gate" in found.message
        assert "--device" in found.message


def test_how_fast_it_is_is_said_in_times():
    fast = replace(SLOW, verdict="faster", ratio=0.15, p50_ms=0.3)
    assert "6.7× as fast" in gate(fast, None, ORT).message
    assert "2.0× as slow (1.9 to 2.1)" in gate(SLOW, None, ORT, device="pi5").message


@pytest.mark.parametrize(
    ("ratio", "found", "validity", "verdict", "limit"),
    [
        (2.0, "slower", "INVALID", Verdict.UNPROVEN, 1.0),
        (1.125, "no detectable difference", "INVALID", Verdict.UNPROVEN, 1.0),
        (1.125, "no detectable difference", "NOISY", Verdict.UNPROVEN, 1.0),
        (1.04, "no detectable difference", "NOISY", Verdict.PASS, 1.05),
        (0.98, "no detectable difference", "VALID", Verdict.PASS, 1.0),
        (0.5, "faster", "INVALID", Verdict.PASS, 1.0),
    ],
)
@pytest.mark.parametrize("device", ["", "pi5"])
def test_no_pass_is_beyond_its_limit(ratio, found, validity, verdict, limit, device):
    """A busy machine's 1.125 passed at a limit of 1."""
    speed = replace(SLOW, ratio=ratio, verdict=found, validity=validity, reasons=("work waited for a CPU",))
    judged = gate(speed, None, ORT, device=device, arch="x86_64")
    assert judged.verdict is verdict
    assert judged.limit == pytest.approx(limit)
    assert "work waited for a CPU" in judged.message
    assert ("idle machine" in judged.message) is (verdict is Verdict.UNPROVEN)
