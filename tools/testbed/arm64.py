"""An aarch64 board on this machine: a Debian root of real aarch64 programs under qemu's user-mode emulation.

``python tools/testbed/arm64.py`` makes it (about two minutes, 560 MB, root only); tests skip without it. What runs
there is the real thing, the wheels of LiteRT, ONNX Runtime and OpenVINO included; how fast it runs says nothing,
and edgekit marks it ``emulated``.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from testbed.sshd import UID, USER, MissingToolError, Sshd, _find

SUITE, MIRROR = "bookworm", "http://deb.debian.org/debian"
PYTHON_VERSION = "3.11"  # the suite's
WHEELS = ("numpy", "onnxruntime", "ai-edge-litert", "openvino")
_BINFMT = Path("/proc/sys/fs/binfmt_misc")
_CPUINFO = "".join(
    f"processor\t: {i}\nBogoMIPS\t: 108.00\nFeatures\t: fp asimd evtstrm crc32 cpuid\nCPU implementer\t: 0x41\n"
    "CPU architecture: 8\nCPU variant\t: 0x0\nCPU part\t: 0xd08\nCPU revision\t: 3\n\n"
    for i in range(2)
)
"""A Cortex-A72's: ONNX Runtime and LiteRT crash on an x86 one."""


def root() -> Path:
    """Where the board's file system is kept between runs."""
    cache = os.environ.get("EDGEKIT_TESTBED") or Path(
        os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    )
    return Path(cache) / "edgekit-testbed" / f"arm64-{SUITE}"


def problem() -> str:
    """Why there is no such board here; empty if there is."""
    if platform.machine() == "aarch64":
        return "this machine is an aarch64 one: nothing to emulate"
    if os.geteuid() != 0:
        return "the aarch64 board needs root (mounts and chroot)"
    if not (root() / "ready").exists():
        return "the aarch64 board is not made: python tools/testbed/arm64.py"
    return ""


def make() -> None:
    """Fetch Debian's packages and the runtimes' wheels, and unpack them; nothing is executed in the root."""
    if problem() and not problem().startswith("the aarch64 board is not made"):
        raise MissingToolError(problem())
    if (root() / "ready").exists():
        return
    for program in ("debootstrap", "dpkg-deb", "tar"):
        _find(program)
    root().parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="making-", dir=root().parent))
    try:
        _debian(work)
        _wheels(work)
        (work / "ready").touch()
        shutil.rmtree(root(), ignore_errors=True)
        work.rename(root())
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _debian(work: Path) -> None:
    """The first stage of debootstrap fetches and checks signatures; unpacking takes the place of the second,
    whose post-install scripts would take seven minutes under emulation."""
    argv = [_find("debootstrap"), "--arch=arm64", "--foreign", "--variant=minbase"]
    argv += ["--include=openssh-server,python3", SUITE, str(work), MIRROR]
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    for package in sorted((work / "var/cache/apt/archives").glob("*.deb")):
        with subprocess.Popen(
            [_find("dpkg-deb"), "--fsys-tarfile", package], stdout=subprocess.PIPE
        ) as source:
            unpack = [_find("tar"), "-xf", "-", "-C", str(work), "--keep-directory-symlink"]
            subprocess.run(unpack, check=True, stdin=source.stdout)
        package.unlink()
    for name in ("proc", "sys"):  # --foreign leaves proc -> /proc: a mount there would hit this machine
        place = work / name
        if place.is_symlink():
            place.unlink()
        place.mkdir(exist_ok=True)
    for name in ("passwd", "group"):  # what base-passwd's post-install script would do
        shutil.copy(work / f"usr/share/base-passwd/{name}.master", work / "etc" / name)
    shutil.rmtree(work / "debootstrap", ignore_errors=True)


def _wheels(work: Path) -> None:
    tags = ("manylinux_2_35", "manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014")
    argv = [sys.executable, "-m", "pip", "install", "--quiet", "--only-binary=:all:", "--no-compile"]
    argv += [f"--platform={tag}_aarch64" for tag in tags]
    argv += [f"--python-version={PYTHON_VERSION}", f"--target={work / 'opt/rt'}"]
    argv += [f"{name}=={metadata.version(name)}" for name in WHEELS]
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL)


def _register() -> None:
    """Let the kernel hand aarch64 programs to qemu, as Debian's qemu-user-static does at boot."""
    if not _BINFMT.joinpath("register").exists():
        subprocess.run([_find("mount"), "-t", "binfmt_misc", "none", str(_BINFMT)], check=True)
    if not _BINFMT.joinpath("qemu-aarch64").exists():
        rule = Path("/usr/lib/binfmt.d/qemu-aarch64.conf")
        if not rule.exists():
            raise MissingToolError("qemu-user-static is not installed: apt install qemu-user-static")
        _BINFMT.joinpath("register").write_text(rule.read_text())


@dataclass(kw_only=True)
class Arm64(Sshd):
    """The board with its own sshd; ``with Arm64() as board`` as for :class:`Sshd`."""

    def __enter__(self) -> Arm64:
        if problem():
            raise MissingToolError(problem())
        _register()
        self.environment = {"QEMU_CPU": "cortex-a72", "LD_LIBRARY_PATH": "", **self.environment}
        super().__enter__()
        return self

    @property
    def python(self) -> str:
        """The board's own interpreter."""
        return "/usr/bin/python3"

    def _packages(self) -> str:
        return "/opt/rt"

    def _prepare_root(self) -> None:
        super()._prepare_root()
        own = (root() / "usr/share/base-passwd/passwd.master").read_text()
        entry = f"{USER}:x:{UID}:{UID}:test-bed:{self.base / 'home'}:/bin/bash\n"
        (self.base / "passwd").write_text(own + f"sshd:x:100:65534::/run/sshd:/usr/sbin/nologin\n{entry}")
        (self.base / "cpuinfo").write_text(_CPUINFO)

    def _namespace(self, server: list[str]) -> list[str]:
        place, base = root(), self.base
        steps = [
            ["mount", "--bind", place, place],
            ["mount", "-t", "proc", "proc", place / "proc"],
            ["mount", "--bind", base / "cpuinfo", place / "proc/cpuinfo"],
            ["mount", "--rbind", "/sys", place / "sys"],
            ["mount", "--rbind", "/dev", place / "dev"],
            ["mount", "-t", "tmpfs", "tmpfs", place / "tmp"],
            ["mkdir", "-p", f"{place}{base}"],
            ["mount", "--bind", base, f"{place}{base}"],
            ["mount", "--bind", base / "passwd", place / "etc/passwd"],
        ]
        script = " && ".join(shlex.join(map(str, step)) for step in steps)
        enter = ["chroot", f"--userspec={UID}:{UID}", str(place), "/usr/sbin/sshd", *server[1:]]
        unshare = [_find("unshare"), "--mount", "--propagation", "private", "sh", "-c"]
        return [*unshare, f"{script} && exec {shlex.join(enter)}"]


if __name__ == "__main__":
    try:
        make()
        _register()
    except (MissingToolError, subprocess.CalledProcessError) as error:
        raise SystemExit(f"arm64 test-bed: {error}") from error
    print(f"made: {root()}")
