"""A desktop JVM in Android's place: a few stand-ins for its classes, and the real runtimes behind their Java APIs."""

from __future__ import annotations

import importlib.util
import os
import subprocess
from pathlib import Path

import package_tools as tools

HERE = Path(__file__).parent / "android"
JNA = Path("/usr/share/java/jna.jar")


def run(*command: str | Path, cwd: Path, path: str | None = None) -> str:
    environment = {**os.environ, "PATH": path or os.environ["PATH"]}
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, f"{command[0]}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout


def javac(sources: list[Path], classpath: list[Path], out: Path, release: str) -> Path:
    out.mkdir(exist_ok=True)
    files = [p for s in sources for p in ([s] if s.is_file() else sorted(s.rglob("*.java")))]
    joined = os.pathsep.join(map(str, classpath))
    run("javac", "-nowarn", "--release", release, "-cp", joined, "-d", out, *files, cwd=out)
    return out


def host_classes(flavour: str, work: Path) -> list[Path]:
    """What stands in for Android, and the real runtime: LiteRT through JNA, or ONNX Runtime for the JVM."""
    host = javac([HERE / "host"], [JNA], work / "host", "8")
    if flavour == "onnxruntime":
        tools.need(tools.ORT_JVM)
        return [host, tools.ORT_JVM]
    tools.need(JNA)
    return [host, javac([HERE / "litert"], [JNA], work / "litert", "8"), JNA]


def litert_library() -> Path:
    """LiteRT's native library, from its wheel."""
    spec = importlib.util.find_spec("ai_edge_litert")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "libLiteRt.so"
