"""The device that a build is for: looked at once, before anything is built.

What it is decides how integer targets are quantized (:func:`adapted`), and what it has whether they can be
verified there.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from edgekit.devices.checkup import check
from edgekit.errors import RuntimeMissingError, UnreachableError
from edgekit.types import Adaptation, Target

if TYPE_CHECKING:
    from edgekit.devices.checkup import RuntimeCheck
    from edgekit.types import Device


@dataclass(frozen=True, kw_only=True)
class Site:
    """A device with its ``facts`` (see ``agent/state.py``) and runtimes by backend."""

    device: Device
    facts: Mapping[str, Any] = field(default_factory=dict)
    runtimes: Mapping[str, RuntimeCheck] = field(default_factory=dict)

    @property
    def verifies(self) -> bool:
        """Whether artifacts can be run there and compared: a phone without Python only times them."""
        return bool(self.facts.get("python"))

    @property
    def arch(self) -> str:
        """As ``uname -m`` says it."""
        return str(self.facts.get("arch") or self.device.arch)

    @property
    def emulated(self) -> bool:
        """Whether its processor is emulated: results count, times do not."""
        return bool(self.facts.get("emulated") or self.device.options.get("emulated"))

    def machine(self) -> dict[str, str | int]:
        """What can change the numbers that an artifact computes there, as :func:`edgekit.core.versions.machine`."""
        system, _, _ = str(self.facts.get("os", "")).partition(" ")
        found: dict[str, str | int] = {
            "device": self.device.name,
            "processor": str(self.facts.get("processor", "")),
            "machine": self.arch,
            "model": str(self.facts.get("model", "")),
            "isa": " ".join(self.facts.get("isa", ())),
            "system": system,
            "cpus": int(self.facts.get("usable_processors", 1)),
            "python": str(self.facts.get("python", "")),
        }
        return found | ({"emulated": True} if self.emulated else {})

    def refuse(self, target: Target) -> None:
        """Raise :class:`RuntimeMissingError` if the target's runtime is not installed there."""
        runtime = self.runtimes.get(target.backend)
        if runtime is None or runtime.versions:
            return
        raise RuntimeMissingError(
            f"{target.name} cannot be verified on {self.device.name}: {runtime.problem}",
            hint=runtime.hint,
        )


def visit(device: Device, backends: Collection[str]) -> Site:
    """Connect and look. Raises :class:`UnreachableError` when that cannot be done."""
    seen = check(device, tuple(dict.fromkeys(backends)))
    if seen.error:
        raise UnreachableError(seen.error, hint=seen.hint)
    return Site(device=device, facts=seen.facts, runtimes={r.backend: r for r in seen.runtimes})


def adapted(target: Target, site: Site) -> Target:
    """The target as ``site``'s processor wants it: the first of its adaptations that fits, else itself."""
    choice = adaptation(target, site)
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


def adaptation(target: Target, site: Site) -> Adaptation | None:
    """Which of the target's adaptations is for ``site``'s processor."""
    isa = site.facts.get("isa", ())
    return next((a for a in target.on if a.fits(site.arch, isa)), None)
