"""What a device's state says about a measurement: throttling, caps, heat, battery, emulation, energy.

Facts and states are what ``agent/state.py`` reports: :class:`~edgekit.devices.wire.DeviceFacts` and
:class:`~edgekit.devices.wire.DeviceState`.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from edgekit.devices.wire import DeviceFacts, DeviceState
from edgekit.types import Device

_PI_NOW = {0x1: "under-voltage", 0x2: "a frequency cap", 0x4: "throttling", 0x8: "the soft temperature limit"}
"""Bits of ``vcgencmd get_throttled`` that tell of the present (Raspberry Pi documentation, vcgencmd)."""

_PROCESSOR_COOLING = ("cpufreq", "thermal-cpufreq", "processor", "devfreq", "cpu", "gpu")


@dataclass(frozen=True, kw_only=True)
class Health:
    """Reasons why latencies are wrong (``invalid``) or uncertain (``noisy``); ``throttled``: worth a redo."""

    invalid: tuple[str, ...] = ()
    noisy: tuple[str, ...] = ()
    throttled: bool = False


def assess(
    facts: DeviceFacts,
    states: Sequence[DeviceState],
    steady: Sequence[tuple[float, float]] = (),
) -> Health:
    """Judge a run by the device's facts and the states sampled before and while it ran. ``steady``: when the
    clock ran (start and end, seconds since the epoch on the device's clock)."""
    slowed = _slowed(states)
    invalid, noisy = list(slowed), []
    if facts.emulated:
        invalid.append("the processor is emulated: its latency says nothing about a device")
    cap = _lowest_cap(facts, states)
    if cap is not None and not slowed:
        noisy.append(f"a processor is capped at {cap:.0%} of its highest frequency")
    noisy += _hot(facts, states)
    clock = _fastest(facts, [s for s in states if _inside(s, steady)])
    if clock is not None and cap is None and not slowed:
        noisy.append(
            f"no processor ran faster than {clock:.0%} of its highest frequency"
            f" (governor: {', '.join(_governors(facts, states)) or 'unknown'})"
        )
    if any(state.battery is not None and state.battery.status == "Discharging" for state in states):
        noisy.append("it runs on battery")
    return Health(invalid=tuple(invalid), noisy=tuple(noisy), throttled=bool(slowed))


def _slowed(states: Sequence[DeviceState]) -> tuple[str, ...]:
    flags = 0
    cooling: set[str] = set()
    for state in states:
        flags |= state.throttled & 0xF
        cooling |= {n for n in state.cooling if n.lower().startswith(_PROCESSOR_COOLING)}
    found = [f"the firmware reports {text}" for bit, text in _PI_NOW.items() if flags & bit]
    if cooling:
        found.append(f"cooling slowed the processor ({', '.join(sorted(cooling))})")
    return tuple(found)


def _lowest_cap(facts: DeviceFacts, states: Sequence[DeviceState]) -> float | None:
    """The lowest cap as a share of the processor's highest frequency, if one is below it."""
    shares = [
        cap / most
        for state in states
        for cap, most in zip(state.cap_khz, facts.max_khz, strict=False)
        if most > 0
    ]
    lowest = min(shares, default=1.0)
    return lowest if lowest < 0.99 else None


def _hot(facts: DeviceFacts, states: Sequence[DeviceState]) -> list[str]:
    """Zones that came to where the kernel begins to slow the processor, by name."""
    found = []
    for zone, trip in sorted(facts.trips_celsius.items()):
        peak = max((s.celsius[zone] for s in states if zone in s.celsius), default=None)
        if peak is not None and peak >= trip:
            found.append(
                f"{zone} came to {peak:.0f} °C: from {trip:.0f} °C on the kernel slows the processor"
            )
    return found


def _fastest(facts: DeviceFacts, states: Sequence[DeviceState]) -> float | None:
    """The highest frequency of any processor in the steady state as a share of its highest, if that is below
    three quarters: turbo of one core is more than all can have, a governor that saves power is far less."""
    shares = [
        now / most
        for state in states
        for now, most in zip(state.khz, facts.max_khz, strict=False)
        if most > 0
    ]
    best = max(shares, default=1.0)
    return best if best < 0.75 else None


def _governors(facts: DeviceFacts, states: Sequence[DeviceState]) -> list[str]:
    during = {name for state in states[1:] for name in state.governors}
    return sorted(during) or list(facts.governors)


def _inside(state: DeviceState, steady: Sequence[tuple[float, float]]) -> bool:
    return any(begun <= state.time <= ended for begun, ended in steady)


def is_emulated(device: Device, facts: DeviceFacts) -> bool:
    """Whether the processor is emulated, as it says itself or its row does: results count, times do not."""
    return facts.emulated or bool(device.options.get("emulated"))


def hottest(state: DeviceState) -> float | None:
    """The highest temperature of any zone, in degrees Celsius."""
    return max(state.celsius.values(), default=None)


def energy(
    states: Sequence[DeviceState], steady: Sequence[tuple[float, float]], idle: DeviceState
) -> dict[str, dict[str, float]]:
    """By power rail: mean milliwatts in the steady state (``steady``: start and end, seconds since the epoch
    on the device's clock) and when idle. Empty where no rail can be read or no sample fell into it."""
    found: dict[str, dict[str, float]] = {}
    rails = {name for state in states for name in state.rails_mw}
    for rail in sorted(rails):
        inside = [
            state.rails_mw[rail] for state in states if rail in state.rails_mw and _inside(state, steady)
        ]
        if inside:
            found[rail] = {"mean_mw": statistics.fmean(inside), "samples": float(len(inside))}
            if rail in idle.rails_mw:
                found[rail]["idle_mw"] = idle.rails_mw[rail]
    return found
