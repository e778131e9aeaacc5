"""Looks at what is installed here and says what to do about it. Nothing heavy is imported, nothing is run.

:func:`observe` gathers the facts, the checks judge them: a check is a function from :class:`Machine` to
findings, so that every combination can be tested without installing it.
"""

from __future__ import annotations

import enum
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import struct
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

from edgekit.core import plugins, tested, versions
from edgekit.core.store import default_root
from edgekit.types import Availability

PACKAGES = (
    "edgekit-deploy",
    "torch",
    "torchvision",
    "numpy",
    "protobuf",
    "onnx",
    "onnx-ir",
    "onnxscript",
    "onnxsim",
    "tensorflow",
    "tensorflow-cpu",
    "tf2onnx",
    "transformers",
)
"""Distributions that matter to edgekit whatever the target is; each backend names its own."""

TOOLS: Mapping[str, str] = {
    "ssh": "devices over SSH",
    "scp": "copying artifacts to devices over SSH",
    "adb": "Android devices",
    "trtexec": "building TensorRT engines by their recipe",
    "java": "checking Android packages",
    "javac": "compiling the Android package's classes",
    "node": "checking web packages",
}
"""Programs for work around the artifacts, with what each is needed for. Building and verifying needs none."""

_LOW_SPACE = 2 * 1024**3


class Level(enum.StrEnum):
    """How much a finding matters."""

    OK = "ok"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at; ``hint`` says what to do, and is empty when nothing has to be done."""

    level: Level
    what: str
    detail: str
    hint: str = ""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The facts that the checks judge.

    ``conflicts`` are requirements of installed packages that are not met; ``cpu_flags`` are the kernel's
    names of instruction sets; ``free_bytes`` is the space where the cache is. ``tested`` are the versions that edgekit
    was tested with, by normalized name.
    """

    python: tuple[int, int, int]
    bits: int
    arch: str
    packages: Mapping[str, str]
    tested: Mapping[str, str] = field(default_factory=dict)
    conflicts: tuple[str, ...] = ()
    torch_cuda: str = ""
    torchvision_needs_cuda: bool = False
    cpu: str = ""
    cpu_flags: frozenset[str] = frozenset()
    gpu_driver: str = ""
    cache: Path = Path()
    free_bytes: int = 0
    cache_writable: bool = True
    tools: Mapping[str, str] = field(default_factory=dict)
    environ: Mapping[str, str] = field(default_factory=dict)
    backends: Mapping[str, Availability] = field(default_factory=dict)


@runtime_checkable
class Doctor(Protocol):
    """A backend's module that knows its runtime's traps."""

    def diagnose(self, machine: Machine) -> Iterable[Finding]:
        """What of ``machine`` is bad for the runtime."""
        ...


def diagnose() -> tuple[Finding, ...]:
    """Every finding about this machine, in a fixed order of subjects."""
    return judge(observe())


def judge(machine: Machine) -> tuple[Finding, ...]:
    """What the facts mean."""
    return tuple(finding for check in CHECKS for finding in check(machine))


# --- facts ------------------------------------------------------------------------------------------------


def observe() -> Machine:
    """Read the facts from this machine. Takes a fraction of a second."""
    infos = [plugins.info(name) for name in plugins.backends()]
    names = dict.fromkeys((*PACKAGES, *(name for info in infos for name in info.packages)))
    packages = {name: version for name in names if (version := versions.installed(name))}
    cpu, flags = _cpu()
    cache = default_root()
    existing = next(p for p in (cache, *cache.parents) if p.exists())
    return Machine(
        python=sys.version_info[:3],
        bits=8 * struct.calcsize("P"),
        arch=platform.machine(),
        packages=packages,
        tested=tested.versions(),
        conflicts=tuple(_conflicts(packages)),
        torch_cuda=_torch_cuda(),
        torchvision_needs_cuda=_torchvision_needs_cuda(),
        cpu=cpu,
        cpu_flags=flags,
        gpu_driver=_gpu_driver(),
        cache=cache,
        free_bytes=shutil.disk_usage(existing).free,
        cache_writable=os.access(existing, os.W_OK),
        tools={name: shutil.which(name) or "" for name in TOOLS},
        environ=dict(os.environ),
        backends=_backends(),
    )


def _conflicts(packages: Iterable[str]) -> Iterator[str]:
    """What ``pip check`` would say about these packages: ``onnx 1.23 needs protobuf>=6, found 5.29``."""
    from packaging.requirements import InvalidRequirement, Requirement

    for name in packages:
        for text in importlib.metadata.requires(name) or ():
            try:
                need = Requirement(text)
            except InvalidRequirement:
                continue
            if need.marker is not None and not need.marker.evaluate({"extra": ""}):
                continue
            installed = versions.installed(need.name)
            if not installed:
                yield f"{name} needs {need.name}{need.specifier}, which is not installed"
            elif not need.specifier.contains(installed, prereleases=True):
                yield f"{name} needs {need.name}{need.specifier}, found {installed}"


def _package_dir(module: str) -> Path | None:
    spec = importlib.util.find_spec(module)
    return Path(spec.origin).parent if spec is not None and spec.origin else None


def _torch_cuda() -> str:
    """The CUDA version torch was built for; empty for a CPU build or when it is not installed."""
    folder = _package_dir("torch")
    if folder is None or not (folder / "version.py").is_file():
        return ""
    text = (folder / "version.py").read_text(encoding="utf-8")
    match = re.search(r"^cuda[^=]*=\s*['\"]([^'\"]+)['\"]", text, re.MULTILINE)
    return match.group(1) if match else ""


def _torchvision_needs_cuda() -> bool:
    """Whether torchvision's library is linked against the CUDA half of torch: its dynamic section says so."""
    folder = _package_dir("torchvision")
    if folder is None:
        return False
    return any(b"libtorch_cuda" in library.read_bytes() for library in folder.glob("_C*.so"))


def _cpu() -> tuple[str, frozenset[str]]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor(), frozenset()
    lines = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    fields = {key.strip(): value.strip() for key, _, value in lines}
    flags = fields.get("flags") or fields.get("Features") or ""
    return fields.get("model name") or fields.get("Model") or platform.processor(), frozenset(flags.split())


def _gpu_driver() -> str:
    for path in (Path("/proc/driver/nvidia/version"), Path("/etc/nv_tegra_release")):
        try:
            return path.read_text(encoding="utf-8", errors="replace").splitlines()[0].strip()
        except (OSError, IndexError):
            continue
    return ""


def _backends() -> dict[str, Availability]:
    return {name: plugins.backend(name).available() for name in plugins.backends()}


# --- checks -----------------------------------------------------------------------------------------------


def _python(m: Machine) -> Iterator[Finding]:
    version = ".".join(map(str, m.python))
    if m.python < (3, 11):
        yield Finding(level=Level.ERROR, what="Python", detail=version, hint="use Python 3.11 or newer")
    elif m.bits != 64:
        yield Finding(
            level=Level.ERROR, what="Python", detail=f"{version}, {m.bits} bits", hint="use a 64-bit Python"
        )
    else:
        yield Finding(level=Level.OK, what="Python", detail=f"{version} on {m.arch}")


def _torch(m: Machine) -> Iterator[Finding]:
    version = m.packages.get("torch")
    if version is None:
        hint = "pip install torch, the CPU build: --index-url https://download.pytorch.org/whl/cpu"
        yield Finding(level=Level.ERROR, what="PyTorch", detail="not installed", hint=hint)
        return
    build = f"CUDA {m.torch_cuda}" if m.torch_cuda else "CPU"
    yield Finding(level=Level.OK, what="PyTorch", detail=f"{version}, {build} build")
    if m.torchvision_needs_cuda and not m.torch_cuda:
        version = m.packages.get("torchvision", "")
        also = ", and transformers' model classes fail with it" if "transformers" in m.packages else ""
        yield Finding(
            level=Level.ERROR,
            what="torchvision",
            detail=f"{version} is built against CUDA, torch is not: importing it fails{also}",
            hint="pip uninstall torchvision, or install its CPU build from the index that torch came from",
        )


def _requirements(m: Machine) -> Iterator[Finding]:
    for conflict in m.conflicts:
        yield Finding(
            level=Level.WARNING,
            what="requirements",
            detail=conflict,
            hint="pip install -c constraints.txt: the pinned set installs beside each other",
        )
    if not m.conflicts:
        yield Finding(level=Level.OK, what="requirements", detail="of all packages below are met")


def _newer(m: Machine) -> Iterator[Finding]:
    """What is installed and newer than what was tested: a later release may execute another thing, or nothing."""
    from packaging.utils import canonicalize_name

    found = [
        (name, version, m.tested[key])
        for name, version in m.packages.items()
        if (key := canonicalize_name(name)) in m.tested and tested.newer(version, m.tested[key])
    ]
    for name, version, pinned in found:
        yield Finding(
            level=Level.WARNING,
            what="tested versions",
            detail=f"{name} {version} is newer than {pinned}, which this edgekit was tested with",
            hint=f"pip install {name}=={pinned}, or trust what edgekit build and edgekit verify say of each artifact: "
            "they run it with what is installed",
        )
    if m.tested and not found:
        yield Finding(
            level=Level.OK,
            what="tested versions",
            detail="no package is newer than what edgekit was tested with",
        )


def _runtimes(m: Machine) -> Iterator[Finding]:
    for name, backend in m.backends.items():
        if backend.usable:
            level = Level.OK
        elif backend.installed:
            level = Level.INFO
        else:
            level = Level.WARNING
        detail = " ".join(filter(None, (backend.version, backend.why_not))) or "available"
        yield Finding(level=level, what=name, detail=detail, hint="" if backend.usable else backend.hint)


def _of_backends(m: Machine) -> Iterator[Finding]:
    for name in plugins.backends():
        doctor = plugins.member(name, "doctor", Doctor)
        if doctor is not None:
            yield from doctor.diagnose(m)


def _tensorflow(m: Machine) -> Iterator[Finding]:
    both = [name for name in ("tensorflow", "tensorflow-cpu") if name in m.packages]
    if len(both) > 1:
        yield Finding(
            level=Level.ERROR,
            what="tensorflow",
            detail="tensorflow and tensorflow-cpu overwrite each other's files",
            hint="pip uninstall tensorflow tensorflow-cpu, then install one of them again",
        )


def _processor(m: Machine) -> Iterator[Finding]:
    flags = m.cpu_flags
    if m.arch in ("x86_64", "AMD64"):
        names: tuple[str, ...] = (
            "avx2",
            "avx512f",
            "avx512_vnni",
            "avx_vnni",
            "amx_int8",
            "avx512_bf16",
            "amx_bf16",
        )
        vnni = bool(flags & {"avx512_vnni", "avx_vnni", "amx_int8"})
        trouble = "no VNNI: 8-bit products of UINT8 × INT8 are added in 16 bits and can saturate"
        hint = "measure accuracy on this kind of CPU too: INT8 results differ from those on a CPU with VNNI"
    elif m.arch in ("aarch64", "arm64"):
        names = ("asimddp", "i8mm", "asimdhp", "fphp", "bf16", "sve")
        vnni = bool(flags & {"asimddp", "i8mm"})
        trouble = "no dot-product instructions: INT8 is hardly quicker than float32"
        hint = "measure before you ship INT8 to this CPU"
    else:
        yield Finding(level=Level.INFO, what="CPU", detail=f"{m.cpu} ({m.arch}): not one edgekit knows")
        return
    have = ", ".join(name for name in names if name in flags) or "no vector extensions known"
    yield Finding(level=Level.OK, what="CPU", detail=f"{m.cpu}: {have}")
    if flags and not vnni:
        yield Finding(level=Level.WARNING, what="CPU", detail=trouble, hint=hint)


def _gpu(m: Machine) -> Iterator[Finding]:
    if m.gpu_driver:
        yield Finding(level=Level.OK, what="NVIDIA GPU", detail=m.gpu_driver)
    else:
        yield Finding(
            level=Level.INFO,
            what="NVIDIA GPU",
            detail="no driver: TensorRT artifacts can be made, not run",
            hint="run edgekit verify on the machine with the GPU",
        )


def _space(m: Machine) -> Iterator[Finding]:
    free = f"{m.free_bytes / 1024**3:.1f} GiB free at {m.cache}"
    if not m.cache_writable:
        hint = "set EDGEKIT_CACHE to a folder that you may write"
        yield Finding(level=Level.ERROR, what="cache", detail=f"{m.cache} cannot be written", hint=hint)
    elif m.free_bytes < _LOW_SPACE:
        hint = "free some space, or set EDGEKIT_CACHE to another disk"
        yield Finding(level=Level.WARNING, what="cache", detail=free, hint=hint)
    else:
        yield Finding(level=Level.OK, what="cache", detail=free)


def _tools(m: Machine) -> Iterator[Finding]:
    for name, path in m.tools.items():
        purpose = TOOLS.get(name, "")
        if path:
            yield Finding(level=Level.OK, what=name, detail=f"{path} ({purpose})")
        else:
            hint = f"install it for {purpose}"
            yield Finding(level=Level.INFO, what=name, detail=f"not found: needed for {purpose}", hint=hint)


CHECKS: tuple[Callable[[Machine], Iterator[Finding]], ...] = (
    _python,
    _torch,
    _requirements,
    _newer,
    _runtimes,
    _of_backends,
    _tensorflow,
    _processor,
    _gpu,
    _space,
    _tools,
)
"""Every check, in the order of the report."""
