"""The agent as one file: its core and a backend's runner in a deterministic executable archive."""

from __future__ import annotations

import functools
import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

from edgekit.core.plugins import runner
from edgekit.core.root import PACKAGE
from edgekit.types import sha256_bytes

_MAIN = """\
import importlib
import sys

entry = sys.argv[1] if len(sys.argv) > 1 else "worker"
if entry not in ("worker", "supervisor", "state", "governor", "installer"):
    sys.exit("usage: AGENT [worker|supervisor|state|governor NAME|installer]")
sys.exit(importlib.import_module("edgekit_agent." + entry).main())
"""


@dataclass(frozen=True, kw_only=True)
class AgentArchive:
    """A zipapp: ``python FILE`` runs it. The same code gives the same bytes."""

    content: bytes
    sha256: str

    @property
    def filename(self) -> str:
        """A name that changes with the content."""
        return f"agent-{self.sha256[:16]}.pyz"

    def write(self, folder: Path) -> Path:
        """Write the archive into ``folder``."""
        path = folder / self.filename
        path.write_bytes(self.content)
        return path


def pack(backend: str) -> AgentArchive:
    """The agent for ``backend``."""
    return pack_runner(runner(backend), backend)


def pack_runner(file: Path, backend: str) -> AgentArchive:
    """The agent with the runner at ``file`` (a plug-in's, or a test's), and its other modules."""
    return _pack(tuple((name, path.read_bytes()) for name, path in modules(file).items()), backend)


def modules(runner: Path) -> dict[str, Path]:
    """A runner's files by their names in the archive: itself, and ``runner_*.py`` beside it."""
    beside = {path.name: path for path in sorted(runner.parent.glob("runner_*.py"))}
    return {"runner.py": runner, **beside}


def code(runner: Path) -> str:
    """sha256 over what runs on the device for a backend."""
    found = b"".join(path.read_bytes() for path in modules(runner).values())
    return sha256_bytes(found)


@functools.lru_cache(maxsize=32)
def _pack(runner: tuple[tuple[str, bytes], ...], backend: str) -> AgentArchive:
    core = PACKAGE / "devices" / "agent"
    files = {f"edgekit_agent/{p.name}": p.read_bytes() for p in core.glob("*.py")}
    files |= {f"edgekit_agent/{name}": content for name, content in runner}
    files["edgekit_agent/backend.py"] = f"NAME = {backend!r}\n".encode()
    files["__main__.py"] = _MAIN.encode()
    buffer = io.BytesIO()
    # Stored, not deflated: the importer need not load zlib, and the bytes do not depend on its version.
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(files):
            archive.writestr(zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0)), files[name])
    content = buffer.getvalue()
    return AgentArchive(content=content, sha256=sha256_bytes(content))
