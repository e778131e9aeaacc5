"""What the device is, and what state it is in: read from /proc and /sys, never written.

``EDGEKIT_SYS`` names another root for /sys (a test's).
"""

from __future__ import annotations

import glob
import os
import platform
import re
import select
import shutil
import subprocess
import sys
import time
from typing import Dict, List, Optional

from .channel import Channel, Message
from .contention import usable_processors


def main() -> int:
    """Report the facts and one sample of the state."""
    Channel().send("result", facts=facts(), state=sample())
    return 0


def root() -> str:
    """Where /sys is."""
    return os.environ.get("EDGEKIT_SYS", "/sys")


def facts() -> Message:
    """What does not change while a benchmark runs."""
    return {
        "arch": platform.machine(),
        "os": "%s %s" % (platform.system(), platform.release()),
        "model": _text("/proc/device-tree/model").rstrip("\0")
        or _text(root() + "/class/dmi/id/product_name"),
        "processor": _processor(),
        "isa": isa(),
        "processors": os.cpu_count() or 1,
        "usable_processors": usable_processors(),
        "memory": _memory(),
        "python": platform.python_version(),
        "executable": sys.executable,
        "libc": " ".join(platform.libc_ver()),
        "boot_id": boot_id(),
        "governors": governors(),
        "max_khz": _numbers("devices/system/cpu/cpu[0-9]*/cpufreq/cpuinfo_max_freq"),
        "trips_celsius": trips(),
        "emulated": emulated(),
        "power_mode": power_mode(),
        "clocks": clocks(),
    }


def sample() -> Message:
    """What may change: frequencies and caps, temperatures, cooling, throttling, power rails, battery."""
    values = {
        "time": time.time(),
        "load": os.getloadavg()[0],
        "khz": _numbers("devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq"),
        "cap_khz": _numbers("devices/system/cpu/cpu[0-9]*/cpufreq/scaling_max_freq"),
        "governors": governors(),
        "celsius": temperatures(),
        "cooling": cooling(),
        "throttled": throttled(),
        "rails_mw": rails(),
        "gpu_hz": _numbers("class/devfreq/*gpu*/cur_freq") or _numbers("class/devfreq/*.gv11b/cur_freq"),
        "battery": battery(),
    }
    return {key: value for key, value in values.items() if value not in (None, [], {})}


def boot_id() -> str:
    """Another one after each start of the machine."""
    return _text("/proc/sys/kernel/random/boot_id")


def governors() -> List[str]:
    """The frequency governors in use, each once."""
    paths = glob.glob(root() + "/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor")
    return sorted({_text(path) for path in paths} - {""})


_NO_HEAT = 1000000
"""Thousandths of a degree: what sensors say that are not there, such as 2147483647, is none."""


def temperatures() -> Dict[str, float]:
    """Degrees Celsius by thermal zone; where two zones have one name, the hotter."""
    found: Dict[str, float] = {}
    for zone in sorted(glob.glob(root() + "/class/thermal/thermal_zone*")):
        value = _number(zone + "/temp")
        if value is not None and -273000 <= value < _NO_HEAT:
            name = _text(zone + "/type") or os.path.basename(zone)
            found[name] = max(value / 1000.0, found.get(name, -273.0))
    return found


def trips() -> Dict[str, float]:
    """Degrees Celsius from which the kernel slows the processor, by thermal zone that has such a trip point."""
    found: Dict[str, float] = {}
    for kind in glob.glob(root() + "/class/thermal/thermal_zone*/trip_point_*_type"):
        value = _number(kind[: -len("_type")] + "_temp")
        if _text(kind) in ("passive", "hot") and value is not None and 0 < value < _NO_HEAT:
            zone = os.path.dirname(kind)
            name = _text(zone + "/type") or os.path.basename(zone)
            found[name] = min(value / 1000.0, found.get(name, 1e9))
    return found


def cooling() -> Dict[str, int]:
    """Cooling devices that are at work, by name and step: a frequency cap shows here."""
    found: Dict[str, int] = {}
    for device in sorted(glob.glob(root() + "/class/thermal/cooling_device*")):
        step = _number(device + "/cur_state")
        if step:
            name = "%s (%s)" % (_text(device + "/type"), os.path.basename(device))
            found[name] = step
    return found


def throttled() -> Optional[int]:
    """The Raspberry Pi firmware's flags: bits 0-3 now (under-voltage, cap, throttled, soft limit), 16-19 since
    the start. Read from /sys where the kernel offers it, else by ``vcgencmd get_throttled``."""
    text = _text(root() + "/devices/platform/soc/soc:firmware/get_throttled")
    if text:
        return int(text, 16)
    tool = shutil.which("vcgencmd")
    if not tool:
        return None
    try:
        answer = subprocess.run([tool, "get_throttled"], stdout=subprocess.PIPE, timeout=2, check=True).stdout
        return int(answer.decode("ascii").strip().split("=")[1], 16)
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None


def rails() -> Dict[str, float]:
    """Milliwatts by power rail: INA3221 (Jetson) and other hwmon chips that name their rails."""
    found: Dict[str, float] = {}
    for label in sorted(glob.glob(root() + "/class/hwmon/hwmon*/in*_label")):
        folder, number = os.path.split(label)[0], os.path.basename(label)[2 : -len("_label")]
        volts, amperes = (
            _number("%s/in%s_input" % (folder, number)),
            _number("%s/curr%s_input" % (folder, number)),
        )
        if volts is not None and amperes is not None:
            found[_text(label)] = volts * amperes / 1000.0
    for label in sorted(glob.glob(root() + "/bus/i2c/drivers/ina3221x/*/iio:device*/rail_name_*")):
        folder, number = os.path.split(label)[0], label.rsplit("_", 1)[1]  # JetPack 4
        value = _number("%s/in_power%s_input" % (folder, number))
        if value is not None:
            found[_text(label)] = float(value)
    for power in sorted(glob.glob(root() + "/class/hwmon/hwmon*/power*_input")):
        value = _number(power)
        if value is not None:
            name = _text(power[: -len("_input")] + "_label") or _text(os.path.dirname(power) + "/name")
            found[name or os.path.basename(power)] = value / 1000.0
    return found or _tegrastats()


_RAIL = re.compile(r"\b([A-Z][A-Z0-9_]+) (\d+)(?:mW)?/(\d+)(?:mW)?(?= |$)")
"""``VDD_GPU_SOC 2403mW/2403mW``: now, and on average. Older ones leave the unit out; ``RAM 1903/7471MB`` is none."""


def tegrastats(line: str) -> Dict[str, float]:
    """Milliwatts by power rail in one line of a Jetson's ``tegrastats``."""
    return {
        found.group(1): float(found.group(2))
        for found in _RAIL.finditer(line)
        if not found.group(1).startswith(("RAM", "SWAP", "IRAM", "EMC", "GR3D"))
    }


def _tegrastats() -> Dict[str, float]:
    """The same of this device, where the sensors are not to be read by this user."""
    tool = shutil.which("tegrastats")
    if not tool:
        return {}
    try:
        process = subprocess.Popen(
            [tool, "--interval", "100"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
    except OSError:
        return {}
    assert process.stdout is not None
    try:
        ready, _, _ = select.select([process.stdout], [], [], 2.0)
        return tegrastats(process.stdout.readline().decode("utf-8", "replace")) if ready else {}
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def power_mode() -> str:
    """A Jetson's power mode by ``nvpmodel -q``: ``MAXN``; empty where there is none."""
    tool = shutil.which("nvpmodel")
    if not tool:
        return ""
    try:
        done = subprocess.run(
            [tool, "-q"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=5, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    found = re.search(r"NV Power Mode: *(\S+)", done.stdout.decode("utf-8", "replace"))
    return found.group(1) if found else ""


def clocks() -> str:
    """``pinned`` where every processor and GPU that tells has one frequency only (what ``jetson_clocks`` does),
    ``free`` where one may change; empty where none tells."""
    pairs = []
    for low, high in (
        ("devices/system/cpu/cpu[0-9]*/cpufreq/scaling_min_freq", "scaling_max_freq"),
        ("class/devfreq/*gpu*/min_freq", "max_freq"),
    ):
        for path in sorted(glob.glob(os.path.join(root(), low))):
            pairs.append((_number(path), _number(os.path.join(os.path.dirname(path), high))))
    known = [pair for pair in pairs if None not in pair]
    if not known:
        return ""
    return "pinned" if all(low == high for low, high in known) else "free"


def battery() -> Message:
    """Charge in percent and whether it discharges; empty without a battery."""
    for supply in sorted(glob.glob(root() + "/class/power_supply/*")):
        if _text(supply + "/type") == "Battery":
            charge = _number(supply + "/capacity")
            known = charge is not None and 0 <= charge <= 1000
            return {"percent": charge if known else None, "status": _text(supply + "/status")}
    return {}


def emulated() -> bool:
    """Whether this processor is emulated by qemu: such latencies say nothing about a device.

    User-mode qemu hides itself from a process's own entries in /proc, not from its child's look at it.
    """
    machine = _text("/proc/device-tree/model") + _text(root() + "/class/dmi/id/sys_vendor")
    parent = _text("/proc/%d/cmdline" % os.getppid()).split("\0")[0]
    foreign = platform.machine() in ("aarch64", "armv7l") and "GenuineIntel" in _text("/proc/cpuinfo")
    return "qemu" in (machine + parent).lower() or bool(os.environ.get("QEMU_CPU")) or foreign


_ISA = {
    "avx2": ("avx2",),
    "avx512": ("avx512f",),
    "vnni": ("avx512_vnni", "avx_vnni", "amx_int8"),
    "amx": ("amx_int8",),
    "bf16": ("avx512_bf16", "amx_bf16", "bf16"),
    "dotprod": ("asimddp",),
    "i8mm": ("i8mm",),
    "fp16": ("asimdhp", "avx512_fp16"),
    "sve": ("sve",),
}
"""Instruction sets that runtimes choose kernels by, and the kernel's names for them: one is enough."""


def isa(cpuinfo: Optional[str] = None) -> List[str]:
    """The instruction sets of :data:`_ISA` that every core has (cores of one phone differ)."""
    text = _text("/proc/cpuinfo") if cpuinfo is None else cpuinfo
    cores = [
        set(line.partition(":")[2].split())
        for line in text.splitlines()
        if line.partition(":")[0].strip() in ("flags", "Features")
    ]
    common = set.intersection(*cores) if cores else set()
    return [name for name, flags in _ISA.items() if common.intersection(flags)]


def _processor() -> str:
    for line in _text("/proc/cpuinfo").splitlines():
        if line.startswith(("model name", "Model", "Hardware")):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory() -> Optional[int]:
    for line in _text("/proc/meminfo").splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return None


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""


def _number(path: str) -> Optional[int]:
    try:
        return int(_text(path))
    except ValueError:
        return None


def _numbers(pattern: str) -> List[int]:
    values = [_number(path) for path in sorted(glob.glob(os.path.join(root(), pattern)))]
    return [value for value in values if value is not None]
