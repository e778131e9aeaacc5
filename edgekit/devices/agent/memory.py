"""Memory of this process by phase, from /proc.

``ru_maxrss`` survives exec (a small child of a big parent reports the parent's peak) and VmPeak counts
address space: neither is used. VmHWM is the peak of resident memory and can be reset by writing 5 to
``/proc/self/clear_refs`` (Linux, proc_pid_clear_refs(5)). ``smaps_rollup`` costs about a millisecond and
is read only outside the timed loop.
"""

from __future__ import annotations

from typing import Dict, Optional, Tuple


def resident() -> Dict[str, int]:
    """``rss`` and ``peak`` (VmHWM) in bytes; empty where /proc does not tell."""
    found: Dict[str, int] = {}
    names = {"VmRSS:": "rss", "VmHWM:": "peak"}
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:
            for line in file:
                parts = line.split()
                if parts and parts[0] in names:
                    found[names[parts[0]]] = int(parts[1]) * 1024
    except OSError:
        return {}
    return found


def growing() -> Tuple[str, int]:
    """What a leak shows in, and its bytes: this process's own memory, in use or swapped out, where the kernel tells
    it apart (``RssAnon``, Linux 4.5), else all that is resident, in which files come and go; -1 where it tells nothing.
    """
    found: Dict[str, int] = {}
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:
            for line in file:
                if line.startswith(("RssAnon:", "VmSwap:", "VmRSS:")):
                    name, value = line.split()[:2]
                    found[name] = int(value) * 1024
    except OSError:
        return "", -1
    if "RssAnon:" in found:
        return "own", found["RssAnon:"] + found.get("VmSwap:", 0)
    return ("resident", found["VmRSS:"]) if "VmRSS:" in found else ("", -1)


def proportional() -> Dict[str, int]:
    """``pss`` and ``private_dirty`` in bytes; empty where the kernel does not tell."""
    found: Dict[str, int] = {}
    names = {"Pss:": "pss", "Private_Dirty:": "private_dirty"}
    try:
        with open("/proc/self/smaps_rollup", encoding="ascii", errors="replace") as file:
            for line in file:
                parts = line.split()
                if parts and parts[0] in names:
                    found[names[parts[0]]] = int(parts[1]) * 1024
    except OSError:
        return {}
    return found


def reset_peak() -> bool:
    """Start a new phase: VmHWM falls back to VmRSS. False where the kernel refuses."""
    try:
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")
    except OSError:
        return False
    return True


class Phases:
    """Peaks by phase: call :meth:`end` when one is over."""

    def __init__(self) -> None:
        self.peaks: Dict[str, Dict[str, int]] = {}
        self.resettable = reset_peak()

    def end(self, name: str) -> None:
        """Record the phase that ends here and start the next."""
        self.peaks[name] = dict(resident())
        self.peaks[name].update(proportional())
        self.resettable = reset_peak() and self.resettable

    def summary(self) -> Dict[str, Optional[object]]:
        """JSON-able: the phases, and whether each peak is the phase's own."""
        return {"phases": self.peaks, "resettable": self.resettable}
