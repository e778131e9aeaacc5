"""Whether an engine is for this device: asked before it is loaded, since an engine is code.

Beside the engine lies ``engine.json``, what it was built from and for (``edgekit/backends/nvidia/engine.py``):

    {"schema": 1, "sha256": …, "size": …, "graph_sha256": …, "runtime": "tensorrt", "version": "10.3.0",
     "gpu": "Orin", "compute_capabilities": ["8.7"], "driver": "R36.4.0 540.4.0", "flags": {…}}

An empty ``gpu`` or ``driver``, or no ``compute_capabilities``, binds it to none: TensorRT for RTX compiles the rest of
its engines on the GPU that runs them.
"""

from __future__ import annotations

import hashlib
import json
import os

RECORD = "engine.json"
SCHEMA = 1


def differences(path, data, here):
    """What does not fit, in words; empty for an engine that may be loaded. ``data`` is the engine's content, ``here``
    what :func:`runner_build.identify` says of this device."""
    try:
        with open(os.path.join(os.path.dirname(path), RECORD), encoding="utf-8") as file:
            record = json.load(file)
        schema = record["schema"]
    except (OSError, ValueError, KeyError, TypeError):
        return ["nothing says what it was built for: %s is missing or damaged" % RECORD]
    if schema != SCHEMA:
        return ["its %s is of another edgekit" % RECORD]
    found = []
    needed = ("runtime", "version")
    if record.get("runtime") != "tensorrt_rtx":
        needed += ("gpu", "compute_capabilities")
    found += ["its %s does not say of its %s" % (RECORD, name) for name in needed if not record.get(name)]
    if len(data) != record.get("size"):
        found.append("it has %d bytes, not %s" % (len(data), record.get("size")))
    elif hashlib.sha256(data).hexdigest() != record.get("sha256"):
        found.append("its content is not what was built")
    for name, what in (("runtime", "runtime"), ("version", "version"), ("gpu", "GPU"), ("driver", "driver")):
        wanted = record.get(name)
        if (wanted != "" or (name == "driver" and record.get("runtime") == "tensorrt")) and wanted != here[
            name
        ]:
            mine = "the %s %s" % (what, wanted) if wanted else "no %s that its record names" % what
            found.append("it was built for %s, and this is %s" % (mine, here[name] or "not known"))
    capabilities = record.get("compute_capabilities")
    if capabilities and here["compute_capability"] not in capabilities:
        found.append(
            "it was built for compute capability %s, and this is %s"
            % (", ".join(map(str, capabilities)), here["compute_capability"])
        )
    return found


def here(name, version, cuda, driver):
    """What :func:`differences` compares with."""
    return {
        "runtime": name,
        "version": version,
        "gpu": cuda.name,
        "compute_capability": "%d.%d" % tuple(cuda.capability),
        "driver": driver,
    }


def root():
    """Where the files of the system are: ``EDGEKIT_ROOT`` names another place (a test's)."""
    return os.environ.get("EDGEKIT_ROOT", "")


def driver():
    """The driver's version; on a Jetson that of its system, too: both come from what NVIDIA calls a release."""
    import re

    found = re.search(
        r"Kernel Module[^\n]*?\s(\d+\.\d+(?:\.\d+)?)\s", _text("/proc/driver/nvidia/version") + " "
    )
    release = re.search(r"# R(\d+) \(release\), REVISION: ([\d.]+)", _text("/etc/nv_tegra_release"))
    parts = ["R%s.%s" % release.groups()] if release else []
    return " ".join(parts + ([found.group(1)] if found else [])) or "unknown"


def _text(path):
    try:
        with open(root() + path, encoding="utf-8", errors="replace") as file:
            return file.read(65536)
    except OSError:
        return ""
