"""A target that is quantized otherwise for a processor like this one is recognised without a device."""

from __future__ import annotations

import platform

import pytest

from edgekit.core import targets
from edgekit.devices import target_device
from edgekit.devices.agent import state


@pytest.mark.parametrize(
    ("machine", "sets", "bits"),
    [("x86_64", ["avx2"], 7), ("x86_64", ["avx2", "vnni"], None), ("riscv64", [], None)],
)
def test_only_processors_without_vnni_get_seven_bits(monkeypatch, machine, sets, bits):
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(state, "isa", lambda: sets)
    choice = target_device.adaptation_here(targets.find("ort-int8"))
    assert (None if choice is None else choice.weight_bits) == bits
