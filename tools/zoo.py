"""The zoo: many architectures through export, passes and the TFLite compiler, compared with PyTorch.

    python tools/zoo.py list
    python tools/zoo.py run [PATTERN…] [--precision fp32] [--redo all|failed] [--cache DIR]
    python tools/zoo.py table            # docs/zoo.json and docs/zoo.md from the results in the cache
    python tools/zoo.py run --precision rtx-fp16        # to engines of TensorRT for RTX: built, not run
    python tools/zoo.py engines          # docs/tensorrt.json and the table in docs/tensorrt.md

Weights are random, batch norms settled, inputs random with a fixed seed. Each model is exported in one process
and compiled and run in another, both with limits on time and memory, and both forked from one that has imported
what all of them need. Exports are kept under a key of the
model's definition and the versions that made them, results under a key of the compiler's source: a second run
takes up where the first ended.
"""

from __future__ import annotations

import argparse
import fnmatch
import functools
import hashlib
import importlib.metadata
import json
import multiprocessing
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
EXPORT_SECONDS = 420
COMPILE_SECONDS = 240
MEMORY = 14 << 30
PRECISIONS = ("fp32", "int8")
ENGINES = ("rtx-fp16", "rtx-int8")
"""TensorRT for RTX builds these without a GPU."""


def main() -> int:
    """Parse the command line and run one of the commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cache", type=Path, default=_default_cache())
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list")
    run = commands.add_parser("run")
    run.add_argument("patterns", nargs="*", default=["*"])
    run.add_argument("--precision", choices=("export", *PRECISIONS, *ENGINES), default="fp32")
    run.add_argument("--redo", choices=("all", "failed"))
    run.add_argument("--exported", action="store_true", help="only what is already exported")
    table = commands.add_parser("table")
    table.add_argument("--out", type=Path, default=ROOT / "docs")
    engines = commands.add_parser("engines")
    engines.add_argument("--out", type=Path, default=ROOT / "docs")
    options = parser.parse_args()

    names = _names()
    if options.command == "list":
        print("\n".join(names))
        return 0
    if options.command == "table":
        from zoo_models.tables import write_tables

        write_tables(options.cache, names, options.out)
        return 0
    if options.command == "engines":
        from zoo_models.engines import write_table

        write_table(options.cache, names, ENGINES, options.out)
        return 0
    chosen = [n for n in names if any(fnmatch.fnmatch(n, p) or p in n for p in options.patterns)]
    if options.exported:
        chosen = [n for n in chosen if (options.cache / n / "export.json").is_file()]
    return _run(chosen, options.precision, options.redo, options.cache)


def _run(names: list[str], precision: str, redo: str | None, cache: Path) -> int:
    failures = 0
    for number, name in enumerate(names, 1):
        folder = cache / name
        folder.mkdir(parents=True, exist_ok=True)
        result = _stage(name, "export", folder, export_key(name), redo)
        if result["status"] == "pass" and precision != "export":
            result = _stage(name, precision, folder, compiler_key(precision), redo)
            if precision == "fp32" and result["status"] == "inaccurate":
                _stage(name, "noise", folder, export_key(name), None)
        failures += result["status"] != "pass"
        error = f"{result['error']:.1e}" if "error" in result else ""
        message = str(result.get("message", "")).splitlines()
        print(
            f"{number:3}/{len(names)} {name:40} {result['status']:12} {error:8} {message[0][:110] if message else ''}",
            flush=True,
        )
    print(f"{len(names) - failures} of {len(names)} pass")
    return 1 if failures else 0


def _stage(name: str, stage: str, folder: Path, key: str, redo: str | None) -> dict[str, Any]:
    """The stage's result: from the cache if the key still holds, else from a fresh process."""
    path = folder / f"{stage}.json"
    if path.is_file():
        known: dict[str, Any] = json.loads(path.read_text())
        again = redo == "all" or (redo == "failed" and known["status"] != "pass")
        settled = stage == "export" and known["status"] in ("pass", "not exported")
        if known.get("key") == key and (settled or not again):
            return known
    path.unlink(missing_ok=True)
    limit = EXPORT_SECONDS if stage == "export" else COMPILE_SECONDS
    start = time.monotonic()
    ended = _apart(stage, name, folder, limit)
    result = json.loads(path.read_text()) if path.is_file() else ended
    result |= {"key": key, "seconds": round(time.monotonic() - start, 1)}
    part = path.with_suffix(".part")
    part.write_text(json.dumps(result, indent=1) + "\n")
    part.replace(path)
    return result


def _apart(stage: str, name: str, folder: Path, limit: int) -> dict[str, Any]:
    """Run the stage in a process of its own; how that ended, where it did not end well."""
    log = folder / f"{stage}.log"
    process = _forks().Process(target=_child, args=(stage, name, folder, log))
    process.start()
    process.join(limit)
    if process.is_alive():
        process.kill()
        process.join()
        return {"status": "timeout", "message": f"no result after {limit} s"}
    lines = log.read_text(errors="replace").strip().splitlines() if log.is_file() else []
    log.unlink(missing_ok=True)
    code = process.exitcode or 0
    if code == 0:
        return {}
    last = lines[-1] if lines else ""
    if code < 0:
        return {"status": "crash", "message": f"signal {-code}: {last}"}
    return {"status": "error", "message": last, "traceback": "\n".join(lines[-30:])}


@functools.cache
def _forks() -> Any:
    os.environ |= {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tools")]),
        "OMP_NUM_THREADS": "1",
        "ORT_DISABLE_TELEMETRY": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONWARNINGS": "ignore",
    }
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["zoo_models.imports"])
    return context


def _child(stage: str, name: str, folder: Path, log: Path) -> None:
    written = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(written, stream)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    from zoo_models import engines, stages

    if stage in ENGINES:
        result = engines.build(name, folder, stage)
    elif stage in ("export", "noise"):
        result = stages.export(name, folder) if stage == "export" else stages.noise(name)
    else:
        result = stages.compare(name, folder, stage)
    (folder / f"{stage}.json").write_text(json.dumps(result))


def export_key(name: str) -> str:
    """Changes when the model's definition or what exports it changes."""
    sources = sorted((ROOT / "tools" / "zoo_models").glob("*.py")) if name.startswith("own/") else []
    versions = [
        importlib.metadata.version(p) for p in ("torch", "transformers", "onnxscript", "onnxsim", "onnx")
    ]
    calm = _calm(name)
    return _digest(sources, [name, *versions, *([calm] if calm else [])])


def compiler_key(precision: str) -> str:
    """Changes when what makes the runtime's file changes."""
    if precision not in ENGINES:
        return _digest(sorted((ROOT / "edgekit" / "backends" / "tflite").rglob("*.py")), [])
    files = [ROOT / "tools" / "zoo_models" / "engines.py"]
    for part in ("backends/nvidia", "graph", "quantize"):
        files += sorted((ROOT / "edgekit" / part).rglob("*.py"))
    return _digest(files, [importlib.metadata.version("tensorrt-rtx-cu13")])


def _digest(files: list[Path], texts: list[str]) -> str:
    digest = hashlib.sha256("\n".join(texts).encode())
    for path in files:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _calm(name: str) -> str:
    from zoo_models import registry

    return registry()[name].calm


def _names() -> list[str]:
    from zoo_models import registry

    return list(registry())


def _default_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgekit" / "zoo"


if __name__ == "__main__":
    sys.exit(main())
