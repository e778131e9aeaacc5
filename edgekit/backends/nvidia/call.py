"""The worker's process: what it is asked, its answer, and what the library says as sentences."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgekit.backends.nvidia import worker
from edgekit.backends.nvidia.profiles import Profiles
from edgekit.errors import RuntimeCrashError, UnsupportedNode
from edgekit.types import Target


@dataclass(frozen=True, kw_only=True)
class Job:
    """What the worker is asked to do; see :mod:`edgekit.backends.nvidia.worker`."""

    module: str
    onnx: Path
    engine: Path | None = None
    compute_capabilities: tuple[str, ...] = ()
    profiles: Profiles
    tf32: bool = False


def named(op: str, node: str, reason: str, modules: Mapping[str, str]) -> UnsupportedNode:
    """A refusal, with the module that the node came from."""
    return UnsupportedNode(op=op, node=node, reason=reason, module_path=modules.get(node, ""))


def call(job: Job, target: Target, modules: Mapping[str, str]) -> worker.Answer:
    """The worker's answer. Raises :class:`RuntimeCrashError` where it ended without one."""
    request: worker.Job = {
        "module": job.module,
        "onnx": str(job.onnx),
        "engine": str(job.engine) if job.engine else None,
        "compute_capabilities": list(job.compute_capabilities),
        "profiles": {name: [list(s) for s in shapes] for name, shapes in job.profiles.items()},
        "tf32": job.tf32,
    }
    argv = [sys.executable, "-I", str(Path(worker.__file__))]
    process = subprocess.run(
        argv, input=json.dumps(request), capture_output=True, text=True, errors="replace", check=False
    )
    try:
        answer: worker.Answer = json.loads(process.stdout)
    except json.JSONDecodeError as e:
        lines = process.stderr.splitlines()
        at = next((line[3:] for line in reversed(lines) if line.startswith("AT ")), "")
        said = " ".join(line for line in lines if not line.startswith("AT ")).strip()[-400:]
        raise RuntimeCrashError(
            f"{job.module} ended its process while it built {target.name} (exit status {process.returncode})"
            + (f", the last node that it parsed being {located(at, modules)}" if at else "")
            + (f": {said}" if said else ""),
            hint="the other targets are not affected; report the model to edgekit",
        ) from e
    return answer


_WORDS = (
    r"MyelinCheckException: \S+ CHECK\([^)]*\) failed\. (.+?)(?: In \S+ at \S+)?\)?$",  # of its compiler
    r'&& "(.+)"$',  # a condition, and what it means
    r"^\S+: Error Code \d+: [\w ]+ \((.*?)(?: In \S+ at \S+)?\)?$",  # of the network's own checks
    r"^\[\S+\] Error Code \d+: [\w ]+ \((.*?)(?: In \S+ at \S+)?\)?$",
    r"^Assertion failed: .*?[^:]: (.+)$",
    r"^Assertion failed: (.+)$",
)


def readable(message: str) -> str:
    """The library's assertions as the sentence in them, or in words where they say too little."""
    if message == "false":
        return "TensorRT's parser has no conversion for it"
    if message == "Unsupported reduction type":
        return "it scatters without a reduction only"
    if "Plugin not found" in message:
        return "neither a TensorRT operator nor a plugin of that name"
    message = message.removeprefix("the builder made no engine: ")
    found = next(filter(None, (re.search(pattern, message) for pattern in _WORDS)), None)
    return re.sub(r"^Assertion .+? failed\. (?=.)", "", found.group(1).strip() if found else message)


def located(text: str, modules: Mapping[str, str]) -> str:
    """``text`` with the modules of the nodes that are named in it."""
    words = set(re.findall(r"[^\s\[\](){}+,;]+", text))
    where = sorted({modules[w] for w in words if modules.get(w)})
    return f"{text} (module {', '.join(where)})" if where else text
