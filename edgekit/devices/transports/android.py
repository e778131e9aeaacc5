"""What an Android device is, and how it is now, from its shell: in the terms of ``agent/state.py``.

Sources: ``getprop``, ``/proc``, ``/sys`` where adb's user may read it, ``dumpsys thermalservice`` (Android 10) and
``dumpsys battery``.
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

from edgekit.devices.agent.state import isa
from edgekit.devices.protocol import plain
from edgekit.devices.transports.process import Patience
from edgekit.devices.wire import Battery, DeviceFacts, DeviceReport, DeviceState
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


def report_phone(transport: Transport) -> DeviceReport:
    """Facts and state. Raises :class:`DeviceError` when the shell does not answer, or not in these terms."""
    return DeviceReport(facts=facts(_answer(transport, _FACTS)), state=sample(transport))


def sample(transport: Transport) -> DeviceState:
    """The state alone, between two runs."""
    return state(_answer(transport, _STATE))


def facts(text: str) -> DeviceFacts:
    """What does not change, from the output of the first script."""
    values: dict[str, list[str]] = {}
    for key, value in re.findall(r"^@(\S+) *(.*)$", text, re.MULTILINE):
        values.setdefault(key, []).append(value.strip())

    def one(key: str) -> str:
        return values.get(key, [""])[0]

    release, soc = (
        one("ro.build.version.release"),
        f"{one('ro.soc.manufacturer')} {one('ro.soc.model')}".strip(),
    )
    memory = re.search(r"^MemTotal: *(\d{1,15}) kB", text, re.MULTILINE)
    processors = _whole(one("processors")) or 1
    virtual = one("ro.hardware").startswith(_EMULATORS) or "1" in (one("ro.kernel.qemu"), one("ro.boot.qemu"))
    return DeviceFacts(
        arch=one("arch"),
        os=f"Android {release}" if release else one("uname"),
        model=f"{one('ro.product.manufacturer')} {one('ro.product.model')}".strip(),
        processor=soc or one("ro.hardware"),
        abi=one("ro.product.cpu.abi"),
        isa=tuple(isa(text)),
        processors=processors,
        usable_processors=processors,
        memory=int(memory[1]) * 1024 if memory else None,
        boot_id=one("boot"),
        governors=tuple(sorted(set(filter(None, values.get("governor", []))))),
        max_khz=tuple(khz for v in values.get("max", []) if (khz := _whole(v)) is not None),
        emulated=virtual,
    )


def state(text: str) -> DeviceState:
    """What may change, from the output of the second script. Temperatures in degrees Celsius.

    A thermal status of moderate or worse means that the system slows its processors: it is reported as a cooling
    device at work.
    """
    _, _, rest = text.partition("@section thermal")
    thermal, _, battery = rest.partition("@section battery")
    status = re.search(r"^Thermal Status: (\d)\b", thermal, re.MULTILINE)
    level = min(int(status[1]), len(_THERMAL) - 1) if status else 0
    return DeviceState(
        time=time.time(),
        khz=_frequencies("now", text),
        cap_khz=_frequencies("cap", text),
        celsius=_temperatures(thermal) or _battery_heat(battery),
        cooling={f"cpu (thermal status {_THERMAL[level]})": level} if level >= 2 else {},
        thermal_status=_THERMAL[level] if status else "",
        battery=_battery(battery),
    )


def _whole(text: str) -> int | None:
    """A number of the kernel's; ``None`` for anything else."""
    return int(text) if re.fullmatch(r"[0-9]{1,15}", text) else None


def _frequencies(word: str, text: str) -> tuple[int, ...]:
    return tuple(int(v) for v in re.findall(rf"^@{word} ([0-9]{{1,15}})$", text, re.MULTILINE))


def _temperatures(text: str) -> dict[str, float]:
    """Those that the thermal HAL measures now; types 0 (CPU), 1 (GPU), 3 (skin), 9 (NPU) tell of the processor."""
    _, _, current = text.partition("Current temperatures from HAL")
    entries = re.findall(
        r"mValue=(\d{1,6}(?:\.\d{1,9})?), mType=([0139]), mName=([^,}]{1,100})", current or text
    )
    return {name: float(value) for value, _, name in entries}


def _battery(text: str) -> Battery | None:
    level = re.search(r"^\s*level: (\d{1,3})\b", text, re.MULTILINE)
    status = re.search(r"^\s*status: (\d)\b", text, re.MULTILINE)
    if level is None or status is None:
        return None
    return Battery(percent=int(level[1]), status=_CHARGE.get(int(status[1]), "Unknown"))


def _battery_heat(text: str) -> dict[str, float]:
    heat = re.search(r"^\s*temperature: (\d{1,6})\b", text, re.MULTILINE)
    return {"battery": int(heat[1]) / 10} if heat else {}


def _answer(transport: Transport, script: str) -> str:
    lines: list[str] = []
    patience = Patience(whole=60, most=1 << 20)
    done = transport.run(["sh", "-c", script], stdin=b"", on_line=lines.append, patience=patience)
    if done.timed_out or not lines:
        raise DeviceError(
            f"{transport.name} does not say what it is: {done.stderr.strip()[-300:] or 'no answer'}",
            hint="try it by hand: adb shell getprop",
        )
    return plain("\n".join(lines))
