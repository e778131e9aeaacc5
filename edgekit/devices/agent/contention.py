"""How much of the machine this process really had while it was timed."""

from __future__ import annotations

import os
import resource
import time
from typing import Dict, List, Optional


def affinity() -> List[int]:
    """The processors that this process may use, in order."""
    try:
        return sorted(os.sched_getaffinity(0))
    except AttributeError:
        return list(range(os.cpu_count() or 1))


def usable_processors() -> int:
    """How many processors this process may use."""
    return len(affinity())


def _pressure() -> Optional[int]:
    """Microseconds for which some task waited for a CPU (PSI, kernel documentation accounting/psi)."""
    try:
        with open("/proc/pressure/cpu", encoding="ascii") as file:
            return int(file.readline().rsplit("total=", 1)[1])
    except (OSError, IndexError, ValueError):
        return None


def _steal() -> Optional[int]:
    """Clock ticks that the hypervisor took from this machine."""
    try:
        with open("/proc/stat", encoding="ascii") as file:
            return int(file.readline().split()[8])
    except (OSError, IndexError, ValueError):
        return None


class Contention:
    """Counters at the start; :meth:`stop` gives the differences."""

    def __init__(self) -> None:
        self._pressure, self._steal = _pressure(), _steal()
        self._switches = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
        self._cpu = time.process_time()
        self._wall = time.perf_counter()

    def stop(self) -> Dict[str, Optional[float]]:
        """Seconds of wall and CPU time, shares of wall time lost to pressure and steal, preemptions."""
        wall = time.perf_counter() - self._wall
        cpu = time.process_time() - self._cpu
        pressure, steal = _pressure(), _steal()
        ticks = float(os.sysconf("SC_CLK_TCK")) * (os.cpu_count() or 1)
        return {
            "wall_s": wall,
            "cpu_s": cpu,
            "cpu_per_wall": cpu / wall if wall > 0 else None,
            "pressure": _share(self._pressure, pressure, wall * 1e6),
            "steal": _share(self._steal, steal, wall * ticks),
            "preempted": resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw - self._switches,
        }


def _share(before: Optional[int], after: Optional[int], whole: float) -> Optional[float]:
    if before is None or after is None or whole <= 0:
        return None
    return min(1.0, max(0.0, (after - before) / whole))  # hypervisors' counters are known to go back
