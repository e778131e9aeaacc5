"""The zoo's architectures to engines of TensorRT for RTX, on a machine without a GPU: built, not run.

The graph that an engine is made of is run, in ONNX Runtime, and compared with PyTorch's outputs.
"""

from __future__ import annotations

import collections
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgekit.backends.nvidia.request import GRAPH
from edgekit.errors import EdgekitError

BEGIN, END = "<!-- begin zoo -->", "<!-- end zoo -->"

_FIELDS = (
    "status",
    "message",
    "nodes",
    "layers",
    "bytes",
    "seconds",
    "build_seconds",
    "graph_db",
    "source_db",
)


def build(name: str, folder: Path, stage: str) -> dict[str, Any]:
    """Quantize where the row is INT8, spell float16 where it is, parse and build; the engine is not kept."""
    from edgekit.backends.nvidia import tensorrt_rtx
    from edgekit.core import targets
    from edgekit.graph import io
    from zoo_models import stages

    target = targets.find("tensorrt-" + stage)
    path, out = folder / "model.onnx", folder / "engine"
    try:
        if target.scheme is not None:
            path = stages.quantize(name, folder, target.name)
    except EdgekitError as error:
        return {"status": "not quantized", "message": error.message}
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    start = time.perf_counter()
    try:
        lowered = tensorrt_rtx.lower(io.describe(path), target, {}, out)
    except EdgekitError as error:
        nodes = [
            {"op": n.op, "node": n.node, "module": n.module_path, "reason": n.reason}
            for n in getattr(error, "nodes", ())
        ]
        return {"status": "refused" if nodes else "error", "message": error.message[:400], "nodes": nodes}
    seconds = time.perf_counter() - start
    size = (out / target.file).stat().st_size
    ran = _ran(folder, path, out)
    shutil.rmtree(out)
    if path != folder / "model.onnx":
        path.unlink()
    return {
        "status": "pass",
        "layers": lowered.details["layers"],
        "bytes": size,
        "build_seconds": round(seconds, 1),
    } | ran


def _ran(folder: Path, source: Path, out: Path) -> dict[str, Any]:
    """SNR against PyTorch in dB of the graph that the engine is made of, and of the one that was lowered."""
    from zoo_models import stages

    inputs = stages.load(folder / "inputs.npz")
    reference = list(stages.load(folder / "outputs.npz").values())
    before, after = (
        stages.snr(stages.in_onnxruntime(path, inputs, optimized=False), reference)
        for path in (source, out / GRAPH)
    )
    return {"graph_db": round(after, 1), "source_db": round(before, 1)}


def write_table(cache: Path, names: Sequence[str], stages: Sequence[str], out: Path) -> None:
    """``tensorrt.json``, and the table between the markers of ``tensorrt.md``."""
    results = {name: _read(cache / name, stages) for name in names}
    (out / "tensorrt.json").write_text(json.dumps(results, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    page = (out / "tensorrt.md").read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    after = rest.partition(END)[2]
    text = f"{before}{BEGIN}\n{table(results, stages)}{END}{after}"
    (out / "tensorrt.md").write_text(text, encoding="utf-8")
    print("wrote tensorrt.json and tensorrt.md")


def _read(folder: Path, stages: Sequence[str]) -> dict[str, dict[str, Any]]:
    found = {}
    for stage in ("export", *stages):
        path = folder / f"{stage}.json"
        if path.is_file():
            result = json.loads(path.read_text())
            found[stage] = {k: result[k] for k in _FIELDS if k in result and stage != "export"} or {
                "status": result["status"]
            }
    return found


def table(results: Mapping[str, Mapping[str, dict[str, Any]]], stages: Sequence[str]) -> str:
    """Counts by origin, then every architecture that did not build, with node and module."""
    exported = [n for n, r in results.items() if r.get("export", {}).get("status") == "pass"]
    origins = list(dict.fromkeys(n.split("/")[0] for n in results))
    lines = [
        "| origin | in the zoo | exported so far | "
        + " | ".join(f"{s}: built / tried" for s in stages)
        + " |"
    ]
    lines.append("|---|---:|---:|" + "---:|" * len(stages))
    for origin in (*origins, "all"):
        mine = [n for n in results if origin in ("all", n.split("/")[0])]
        cells = [origin, str(len(mine)), str(sum(n in exported for n in mine))]
        for stage in stages:
            count = collections.Counter(results[n][stage]["status"] for n in mine if stage in results[n])
            share = f" ({count['pass'] / count.total():.0%})" if count.total() else ""
            cells.append(f"{count['pass']} / {count.total()}{share}")
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        "Not built:",
        "",
        "| architecture | row | operator | node | module | why |",
        "|---|---|---|---|---|---|",
    ]
    for name, found in results.items():
        for stage in stages:
            result = found.get(stage, {})
            if result and result["status"] != "pass":
                lines += [f"| {name} | {stage} | {row} |" for row in _reasons(result)]
    return "\n".join(lines) + "\n"


def _reasons(result: Mapping[str, Any]) -> list[str]:
    """One row a kind of refusal: its first node stands for the others."""
    if not result.get("nodes"):
        message = str(result.get("message", "")).replace("|", "/").replace("\n", " ")[:200]
        return [f"– | – | – | {result['status']}: {message}"]
    kinds = collections.Counter((n["op"], n["reason"]) for n in result["nodes"])
    first = {(n["op"], n["reason"]): n for n in reversed(result["nodes"])}
    return [
        f"{op} ×{count} | {first[op, why]['node']} | {first[op, why]['module'] or '–'} | "
        + why.replace("|", "/").replace("\n", " ")[:160]
        for (op, why), count in kinds.items()
    ]
