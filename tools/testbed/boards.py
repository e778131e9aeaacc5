"""Arm boards on this machine: Debian roots of real Arm programs under qemu's user-mode emulation.

``python tools/testbed/boards.py [arm64|armhf]`` makes them (root only; a minute and 560 MB, 250 MB); tests skip
without. What runs there is the real thing, the runtimes' wheels included; how fast it runs says nothing, and edgekit
marks it ``emulated``.
"""

from __future__ import annotations

import contextlib
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

from testbed.cache import folder, why_not
from testbed.sshd import UID, USER, MissingToolError, Sshd, _find, call

SUITE, MIRROR = "bookworm", "http://deb.debian.org/debian"
PYTHON_VERSION = "3.11"  # the suite's
_BINFMT = Path("/proc/sys/fs/binfmt_misc")


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What a board is. ``name`` is Debian's word for its architecture, ``machine`` is uname's, ``cpu`` qemu's for the
    processor; ``features`` and ``part`` are that processor's in /proc/cpuinfo (runtimes crash on an x86 one).
    ``packages`` are Debian's, ``wheels`` are for ``tags``."""

    name: str
    machine: str
    qemu: str
    cpu: str
    features: str
    part: str
    packages: tuple[str, ...]
    wheels: tuple[str, ...]
    tags: tuple[str, ...]

    @property
    def root(self) -> Path:
        """Where its file system is kept between runs."""
        return folder() / f"{self.name}-{SUITE}"

    def problem(self) -> str:
        """Why there is no such board here; empty if there is."""
        if platform.machine() == self.machine:
            return f"this machine is an {self.machine} one: nothing to emulate"
        if os.geteuid() != 0:
            return f"the {self.machine} board needs root (mounts and chroot)"
        if not (self.root / "ready").exists():
            return why_not(
                self.name, f"the {self.machine} board", f"python tools/testbed/boards.py {self.name}"
            )
        return ""


ARM64 = Kind(
    name="arm64",
    machine="aarch64",
    qemu="qemu-aarch64",
    cpu="cortex-a72",
    features="fp asimd evtstrm crc32 cpuid",
    part="0xd08",
    packages=("openssh-server", "python3"),
    wheels=tuple(
        f"{name}=={metadata.version(name)}" for name in ("numpy", "onnxruntime", "ai-edge-litert", "openvino")
    ),
    tags=tuple(
        f"{tag}_aarch64"
        for tag in ("manylinux_2_35", "manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014")
    ),
)
ARMHF = Kind(
    name="armhf",
    machine="armv7l",
    qemu="qemu-arm",
    cpu="cortex-a15",
    features="half thumb fastmult vfp edsp neon vfpv3 tls vfpv4 idiva idivt vfpd32 lpae evtstrm",
    part="0xc0f",
    packages=("openssh-server", "python3", "python3-numpy"),  # no wheels of numpy for armv7; Debian's is 1.24
    wheels=("tflite-runtime==2.14.0",),
    tags=("manylinux_2_34_armv7l",),
)
KINDS = {kind.name: kind for kind in (ARM64, ARMHF)}


def make(kind: Kind) -> None:
    """Fetch Debian's packages and the runtimes' wheels, and unpack them; nothing is executed in the root."""
    if platform.machine() == kind.machine or os.geteuid() != 0:
        raise MissingToolError(kind.problem())
    if (kind.root / "ready").exists():
        return
    for program in ("debootstrap", "dpkg-deb", "tar"):
        _find(program)
    kind.root.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="making-", dir=kind.root.parent))
    work.chmod(0o755)
    try:
        _debian(kind, work)
        _wheels(kind, work)
        (work / "ready").touch()
        shutil.rmtree(kind.root, ignore_errors=True)
        work.rename(kind.root)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _debian(kind: Kind, work: Path) -> None:
    """The first stage of debootstrap fetches and checks signatures; unpacking takes the place of the second,
    whose post-install scripts would take seven minutes under emulation."""
    argv = [_find("debootstrap"), f"--arch={kind.name}", "--foreign", "--variant=minbase"]
    argv += [f"--include={','.join(kind.packages)}", SUITE, str(work), MIRROR]
    call(*argv)
    unpack = [_find("tar"), "-xf", "-", "-C", str(work), "--keep-directory-symlink"]
    unpack += [f"--exclude=./usr/share/{name}/*" for name in ("doc", "man", "locale", "i18n")]
    for package in sorted((work / "var/cache/apt/archives").glob("*.deb")):
        with subprocess.Popen(
            [_find("dpkg-deb"), "--fsys-tarfile", package], stdout=subprocess.PIPE
        ) as source:
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
    _alternatives(work)


def _alternatives(work: Path) -> None:
    """The libraries that numpy finds through links of update-alternatives, which only a post-install script makes."""
    for library in (work / "usr/lib").glob("*/*/lib*.so.3"):
        if library.parent.name in ("blas", "lapack"):
            link = library.parent.parent / library.name
            if not link.exists():
                link.symlink_to(f"{library.parent.name}/{library.name}")


def _wheels(kind: Kind, work: Path) -> None:
    argv = [sys.executable, "-m", "pip", "install", "--quiet", "--only-binary=:all:", "--no-compile"]
    argv += ["--timeout=30", "--retries=1", *(f"--platform={tag}" for tag in kind.tags)]
    argv += [f"--python-version={PYTHON_VERSION}", f"--target={work / 'opt/rt'}"]
    if kind is ARMHF:
        argv.append("--no-deps")  # numpy is Debian's
    call(*argv, *kind.wheels)


def register(kind: Kind) -> None:
    """Let the kernel hand the board's programs to qemu, as Debian's qemu-user-static does at boot."""
    if not _BINFMT.joinpath("register").exists():
        call(_find("mount"), "-t", "binfmt_misc", "none", _BINFMT)
    if not _BINFMT.joinpath(kind.qemu).exists():
        rule = Path(f"/usr/lib/binfmt.d/{kind.qemu}.conf")
        if not rule.exists():
            raise MissingToolError("qemu-user-static is not installed: apt install qemu-user-static")
        with contextlib.suppress(FileExistsError):  # another process was quicker
            _BINFMT.joinpath("register").write_text(rule.read_text())


@dataclass(kw_only=True)
class Board(Sshd):
    """The board with its own sshd; ``with Board(kind=ARM64) as board`` as for :class:`Sshd`."""

    kind: Kind

    def __enter__(self) -> Board:
        if self.kind.problem():
            raise MissingToolError(self.kind.problem())
        register(self.kind)
        self.environment = {"QEMU_CPU": self.kind.cpu, "LD_LIBRARY_PATH": "", **self.environment}
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
        own = (self.kind.root / "usr/share/base-passwd/passwd.master").read_text()
        entry = f"{USER}:x:{UID}:{UID}:test-bed:{self.base / 'home'}:/bin/bash\n"
        (self.base / "passwd").write_text(own + f"sshd:x:100:65534::/run/sshd:/usr/sbin/nologin\n{entry}")
        (self.base / "cpuinfo").write_text(
            "".join(
                f"processor\t: {i}\nBogoMIPS\t: 108.00\nFeatures\t: {self.kind.features}\nCPU implementer\t: 0x41\n"
                f"CPU architecture: {8 if self.kind is ARM64 else 7}\nCPU variant\t: 0x0\n"
                f"CPU part\t: {self.kind.part}\nCPU revision\t: 3\n\n"
                for i in range(2)
            )
        )

    def _namespace(self, server: list[str]) -> list[str]:
        place, base = self.kind.root, self.base
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
    for chosen in [KINDS[name] for name in sys.argv[1:]] or KINDS.values():
        try:
            make(chosen)
            register(chosen)
        except (MissingToolError, subprocess.CalledProcessError) as error:
            raise SystemExit(str(error)) from error
        print(f"made: {chosen.root}")
