"""The device that a build is for: looked at once, before anything is built.

What it is decides how integer targets are quantized (:func:`adapted`), and what it has whether they can be
verified there.
"""

from __future__ import annotations

import platform
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from edgekit.devices.agent import state
from edgekit.devices.checkup import check
from edgekit.devices.health import is_emulated
from edgekit.devices.wire import DeviceFacts
from edgekit.errors import RuntimeMissingError, UnreachableError
from edgekit.types import Adaptation, Target

if TYPE_CHECKING:
    from edgekit.devices.checkup import RuntimeCheck
    from edgekit.types import Device


@dataclass(frozen=True, kw_only=True)
class TargetDevice:
    """A device with its ``facts`` (see ``agent/state.py``) and runtimes by backend."""

    device: Device
    facts: DeviceFacts = field(default_factory=DeviceFacts)
    runtimes: Mapping[str, RuntimeCheck] = field(default_factory=dict)

    @property
    def verifies(self) -> bool:
        """Whether artifacts can be run there and compared: a phone without Python only times them."""
        return bool(self.facts.python)

    @property
    def arch(self) -> str:
        """As ``uname -m`` says it."""
        return self.facts.arch or self.device.arch

    @property
    def emulated(self) -> bool:
        """Whether its processor is emulated: results count, times do not."""
        return is_emulated(self.device, self.facts)

    def machine(self) -> dict[str, str | int]:
        """What can change the numbers that an artifact computes there, as :func:`edgekit.core.versions.machine`."""
        machine: dict[str, str | int] = {
            "device": self.device.name,
            "processor": self.facts.processor,
            "machine": self.arch,
            "model": self.facts.model,
            "isa": " ".join(self.facts.isa),
            "system": self.facts.os.partition(" ")[0],
            "cpus": self.facts.usable_processors or 1,
            "python": self.facts.python,
        }
        return machine | ({"emulated": True} if self.emulated else {})

    def refuse(self, target: Target) -> None:
        """Raise :class:`RuntimeMissingError` if the target's runtime is not installed there."""
        runtime = self.runtimes.get(target.backend)
        if runtime is None or runtime.versions:
            return
        raise RuntimeMissingError(
            f"{target.name} cannot be verified on {self.device.name}: {runtime.problem}",
            hint=runtime.hint,
        )


def probe(device: Device, backends: Collection[str]) -> TargetDevice:
    """Connect and look. Raises :class:`UnreachableError` when that cannot be done."""
    checkup = check(device, tuple(dict.fromkeys(backends)))
    if checkup.error:
        raise UnreachableError(checkup.error, hint=checkup.hint)
    return TargetDevice(device=device, facts=checkup.facts, runtimes={r.backend: r for r in checkup.runtimes})


def adapted(target: Target, device: TargetDevice) -> Target:
    """The target as ``device``'s processor wants it: the first of its adaptations that fits, else itself."""
    choice = adaptation(target, device)
    if choice is None or target.scheme is None:
        return target
    symmetric = choice.activation_symmetric
    symmetric = target.scheme.activation_symmetric if symmetric is None else symmetric
    scheme = replace(
        target.scheme,
        activation=choice.activation or target.scheme.activation,
        activation_symmetric=symmetric,
        weight_bits=choice.weight_bits or target.scheme.weight_bits,
        why=choice.why,
    )
    return replace(target, scheme=scheme)


def adaptation(target: Target, device: TargetDevice) -> Adaptation | None:
    """Which of the target's adaptations is for ``device``'s processor."""
    return next((a for a in target.on if a.fits(device.arch, device.facts.isa)), None)


def adaptation_here(target: Target) -> Adaptation | None:
    """Which of the target's adaptations is for this machine's processor."""
    return next((a for a in target.on if a.fits(platform.machine(), state.isa())), None)
