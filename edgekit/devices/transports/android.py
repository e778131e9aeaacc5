"""What an Android device is, and how it is now, from its shell: in the terms of ``agent/state.py``.

Sources: ``getprop``, ``/proc``, ``/sys`` where adb's user may read it, ``dumpsys thermalservice`` (Android 10) and
``dumpsys battery``.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from edgekit.devices.agent.state import isa
from edgekit.devices.plan import Look
from edgekit.devices.transports.process import Patience
from edgekit.errors import DeviceError

if TYPE_CHECKING:
    from edgekit.devices.transports.transport import Transport

_FACTS = """
for p in ro.product.manufacturer ro.product.model ro.soc.manufacturer ro.soc.model ro.product.cpu.abi \
  ro.build.version.release ro.hardware ro.kernel.qemu ro.boot.qemu; do echo "@$p $(getprop $p)"; done
echo "@uname $(uname -s) $(uname -r)"
echo "@arch $(uname -m)"
echo "@boot $(cat /proc/sys/kernel/random/boot_id 2>/dev/null)"
echo "@processors $(ls -d /sys/devices/system/cpu/cpu[0-9]* 2>/dev/null | wc -l)"
for f in /sys/devices/system/cpu/cpu[0-9]*/cpufreq; do
  echo "@max $(cat $f/cpuinfo_max_freq 2>/dev/null)"; echo "@governor $(cat $f/scaling_governor 2>/dev/null)"
done
cat /proc/meminfo 2>/dev/null
cat /proc/cpuinfo 2>/dev/null
"""
_STATE = """
for f in /sys/devices/system/cpu/cpu[0-9]*/cpufreq; do
  echo "@now $(cat $f/scaling_cur_freq 2>/dev/null)"; echo "@cap $(cat $f/scaling_max_freq 2>/dev/null)"
done
echo "@load $(cat /proc/loadavg 2>/dev/null)"
echo "@section thermal"; dumpsys thermalservice 2>/dev/null
echo "@section battery"; dumpsys battery 2>/dev/null
"""

_THERMAL = ("none", "light", "moderate", "severe", "critical", "emergency", "shutdown")
"""PowerManager.THERMAL_STATUS_*."""
_CHARGE = {1: "Unknown", 2: "Charging", 3: "Discharging", 4: "Not charging", 5: "Full"}
"""BatteryManager.BATTERY_STATUS_*, by the names that Linux has for them."""
_EMULATORS = ("goldfish", "ranchu", "cutf", "vsoc")


def look(transport: Transport) -> Look:
    """Facts and state. Raises :class:`DeviceError` when the shell does not answer."""
    return Look(facts=facts(_said(transport, _FACTS)), state=state(_said(transport, _STATE)))


def sample(transport: Transport) -> Mapping[str, Any]:
    """The state alone, between two runs."""
    return state(_said(transport, _STATE))


def facts(text: str) -> dict[str, Any]:
    """What does not change, from the output of the first script."""
    said: dict[str, list[str]] = {}
    for key, value in re.findall(r"^@(\S+) *(.*)$", text, re.MULTILINE):
        said.setdefault(key, []).append(value.strip())

    def one(key: str) -> str:
        return said.get(key, [""])[0]

    maker, soc = one("ro.product.manufacturer"), f"{one('ro.soc.manufacturer')} {one('ro.soc.model')}".strip()
    memory = re.search(r"^MemTotal: *(\d+) kB", text, re.MULTILINE)
    emulator = one("ro.hardware").startswith(_EMULATORS) or "1" in (
        one("ro.kernel.qemu"),
        one("ro.boot.qemu"),
    )
    return {
        "arch": one("arch"),
        "os": f"Android {one('ro.build.version.release')}"
        if one("ro.build.version.release")
        else one("uname"),
        "model": f"{maker} {one('ro.product.model')}".strip(),
        "processor": soc or one("ro.hardware"),
        "abi": one("ro.product.cpu.abi"),
        "isa": isa(text),
        "processors": int(one("processors") or 0) or 1,
        "usable_processors": int(one("processors") or 0) or 1,
        "memory": int(memory[1]) * 1024 if memory else None,
        "python": "",
        "boot_id": one("boot"),
        "governors": sorted(set(filter(None, said.get("governor", [])))),
        "max_khz": [int(v) for v in said.get("max", []) if v.isdigit()],
        "emulated": emulator,
    }


def state(text: str) -> dict[str, Any]:
    """What may change, from the output of the second script. Temperatures in degrees Celsius.

    A thermal status of moderate or worse means that the system slows its processors: it is told as a cooling
    device at work.
    """
    _, _, rest = text.partition("@section thermal")
    thermal, _, battery = rest.partition("@section battery")
    frequencies = {
        key: [int(v) for v in re.findall(rf"^@{word} (\d+)$", text, re.MULTILINE)]
        for key, word in (("khz", "now"), ("cap_khz", "cap"))
    }
    status = re.search(r"^Thermal Status: (\d+)", thermal, re.MULTILINE)
    level = int(status[1]) if status else 0
    found = {
        "time": time.time(),
        **frequencies,
        "celsius": _temperatures(thermal) or _battery_heat(battery),
        "cooling": {f"cpu (thermal status {_THERMAL[min(level, 6)]})": level} if level >= 2 else {},
        "thermal_status": _THERMAL[min(level, 6)] if status else None,
        "battery": _battery(battery),
    }
    return {key: value for key, value in found.items() if value not in (None, [], {})}


def _temperatures(text: str) -> dict[str, float]:
    """Those that the thermal HAL measures now; types 0 (CPU), 1 (GPU), 3 (skin), 9 (NPU) tell of the processor."""
    _, _, current = text.partition("Current temperatures from HAL")
    found = {}
    for value, kind, name in re.findall(r"mValue=([\d.]+), mType=(-?\d+), mName=([^,}]+)", current or text):
        if int(kind) in (0, 1, 3, 9):
            found[name] = float(value)
    return found


def _battery(text: str) -> dict[str, Any]:
    level = re.search(r"^\s*level: (\d+)", text, re.MULTILINE)
    status = re.search(r"^\s*status: (\d+)", text, re.MULTILINE)
    if level is None or status is None:
        return {}
    return {"percent": int(level[1]), "status": _CHARGE.get(int(status[1]), "Unknown")}


def _battery_heat(text: str) -> dict[str, float]:
    heat = re.search(r"^\s*temperature: (\d+)", text, re.MULTILINE)
    return {"battery": int(heat[1]) / 10} if heat else {}


def _said(transport: Transport, script: str) -> str:
    lines: list[str] = []
    done = transport.run(["sh", "-c", script], stdin=b"", on_line=lines.append, patience=Patience(whole=60))
    if done.timed_out or not lines:
        raise DeviceError(
            f"{transport.name} does not say what it is: {done.stderr.strip()[-300:] or 'no answer'}",
            hint="try it by hand: adb shell getprop",
        )
    return "\n".join(lines)
