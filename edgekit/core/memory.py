"""How much memory there is."""

from __future__ import annotations

from pathlib import Path


def available_memory() -> int:
    """Bytes that can be used without swapping, a container's limit counted; much where the system does not tell."""
    free = [1 << 40]
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free += [int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")]
        group = Path("/sys/fs/cgroup")
        limit, used = ((group / f"memory.{name}").read_text(encoding="ascii") for name in ("max", "current"))
        free += [int(limit) - int(used)] if limit.strip() != "max" else []
    except (OSError, ValueError):
        pass
    return max(0, min(free))
