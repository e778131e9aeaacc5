"""Describes this Python, and installs wheels for it into a folder of its own. There is no pip here.

The request is one JSON line on stdin: ``action`` describe, install (``backend``, ``wheels``: path, name, version,
sha256; ``unpacked``: bytes) or remove (``backend``). The answer is one ``result`` or ``error`` event.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import struct
import subprocess
import sys
import zipfile
from contextlib import suppress
from typing import Dict, List, Tuple

from . import runtimes
from .channel import Channel, Message

RECORD = "edgekit.json"


def main() -> int:
    """Read the request, do it."""
    channel = Channel()
    try:
        request = json.loads(sys.stdin.readline())
        channel.send("result", **ACTIONS[request["action"]](request))
    # What a damaged wheel raises depends on how it is compressed; the host must hear of it, whatever it was.
    except Exception as error:  # noqa: BLE001
        number = error.errno if isinstance(error, OSError) else None
        channel.send("error", message="%s: %s" % (type(error).__name__, error), errno=number)
        return 1
    return 0


def describe(request: Message) -> Message:
    """What wheels have to fit, what is installed, and what ``prepare`` has put here."""
    del request
    base = runtimes.folder("")
    names = sorted(os.listdir(base)) if os.path.isdir(base) else []
    name, version = libc()
    return {
        "version": list(sys.version_info[:3]),
        "implementation": sys.implementation.name,
        "machine": machine(),
        "libc": name,
        "libc_version": version,
        "packages": packages(),
        "root": runtimes.root(),
        "prepared": {n: record(os.path.join(base, n)) for n in names if record(os.path.join(base, n))},
    }


def machine() -> str:
    """The architecture of this interpreter: 32 bits of it run on 64-bit kernels, too."""
    found = platform.machine()
    if struct.calcsize("P") == 4:
        return {"aarch64": "armv7l", "armv8l": "armv7l", "x86_64": "i686"}.get(found, found)
    return found


def libc() -> Tuple[str, List[int]]:
    """``glibc`` or ``musl``, and its version."""
    with suppress(AttributeError, ValueError, OSError, TypeError):
        name, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").split()
        return name, [int(n) for n in version.split(".")[:2]]
    name, version = platform.libc_ver()
    if name == "glibc":
        return name, [int(n) for n in version.split(".")[:2]]
    loader = sorted(n for n in os.listdir("/lib") if n.startswith("ld-musl-"))
    if loader:
        said = subprocess.run(["/lib/" + loader[0]], stderr=subprocess.PIPE, check=False).stderr
        found = re.search(rb"Version (\d+)\.(\d+)", said)
        if found:
            return "musl", [int(found.group(1)), int(found.group(2))]
    return "", [0, 0]


def packages() -> Dict[str, str]:
    """Installed distributions by normalized name."""
    from importlib import metadata

    found: Dict[str, str] = {}
    for entry in metadata.distributions():
        name = entry.metadata["Name"]
        if name:
            found.setdefault(re.sub(r"[-_.]+", "-", name).lower(), entry.version)
    return found


def record(folder: str) -> List[Dict[str, str]]:
    """The wheels that were installed into ``folder``; empty if none were, or not to the end."""
    with suppress(OSError, ValueError, KeyError):
        with open(os.path.join(folder, RECORD), encoding="utf-8") as file:
            found: List[Dict[str, str]] = json.load(file)["wheels"]
        return found
    return []


def install(request: Message) -> Message:
    """Unpack beside, then put in place in one rename: a runtime is there whole or not at all."""
    final = runtimes.folder(check(request["backend"]))
    parent = os.path.dirname(final)
    os.makedirs(parent, mode=0o700, exist_ok=True)
    free = shutil.disk_usage(parent).free
    if free < request["unpacked"] * 1.05:
        raise OSError(28, "%d MB are needed and %d MB free" % (request["unpacked"] >> 20, free >> 20))
    making = os.path.join(parent, ".making-%s-%d" % (request["backend"], os.getpid()))
    shutil.rmtree(making, ignore_errors=True)
    try:
        for wheel in request["wheels"]:
            unpack(wheel, making)
        kept = [{k: w[k] for k in ("name", "version", "sha256")} for w in request["wheels"]]
        with open(os.path.join(making, RECORD), "w", encoding="utf-8") as file:
            json.dump({"wheels": kept}, file)
            file.flush()
            os.fsync(file.fileno())
        replace(making, final)
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return {"folder": final}


def remove(request: Message) -> Message:
    """Take a runtime away, if it is one of ours."""
    final = runtimes.folder(check(request["backend"]))
    there = bool(record(final))
    if there:
        shutil.rmtree(final)
    return {"folder": final, "removed": there}


ACTIONS = {"describe": describe, "install": install, "remove": remove}


def check(backend: str) -> str:
    """A name, not a path."""
    if not re.match(r"[a-z][a-z0-9_-]*\Z", backend):
        raise ValueError("%r is no backend" % backend)
    return backend


def replace(making: str, final: str) -> None:
    """``making`` becomes ``final``; what was there goes."""
    old = making + ".old"
    with suppress(FileNotFoundError):
        os.rename(final, old)
    os.rename(making, final)
    shutil.rmtree(old, ignore_errors=True)


def unpack(wheel: Dict[str, str], target: str) -> None:
    """The wheel's packages (PEP 427); scripts, headers and data are of no use here."""
    with open(wheel["path"], "rb") as file:
        digest = hashlib.sha256()
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    if digest.hexdigest() != wheel["sha256"]:
        raise ValueError("%s is damaged" % wheel["name"])
    root = os.path.realpath(target)
    os.makedirs(root, mode=0o700, exist_ok=True)
    with zipfile.ZipFile(wheel["path"]) as archive:
        for item in archive.infolist():
            name = place(item.filename)
            if not name or item.is_dir():
                continue
            path = os.path.realpath(os.path.join(root, name))
            if not path.startswith(root + os.sep):
                raise ValueError("%s: %r leaves its folder" % (wheel["name"], item.filename))
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with archive.open(item) as source, open(path, "wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)


def place(name: str) -> str:
    """Where a file of a wheel goes; empty for what is not installed."""
    found = re.match(r"[^/]+\.data/([^/]+)/(.*)", name, re.DOTALL)
    if not found:
        return name
    return found.group(2) if found.group(1) in ("purelib", "platlib") else ""
