"""A student of a third of the teacher's layers on SST-2: what soft targets and features add to the labels.

    EDGEKIT_DATA=DATA python examples/sentiment_distill/sentiment_distill.py --out OUT [--seeds 0,1,2]

Fine-tunes the teacher (first time). For each seed the same student is trained twice, with ``labels.toml`` and with
``distilled.toml``, and judged on the test set. The first seed's distilled student is then built for ONNX Runtime in
fp32 and INT8 and timed against the teacher. ``OUT/results.json`` has all figures.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "sst2"))

import commands  # noqa: E402
import sst2  # noqa: E402

METHODS = ("labels", "distilled")
TARGETS = ("ort-fp32", "ort-int8")


def main() -> None:
    """Train, build, measure, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("sentiment_distill"))
    parser.add_argument("--seeds", default="0,1,2")
    options = parser.parse_args()
    seeds = [int(s) for s in options.seeds.split(",")]
    accuracies = [trained(seed, options.out) for seed in seeds]
    models = built(options.out, f"distilled-{seeds[0]}")
    results = {"seeds": dict(zip(map(str, seeds), accuracies, strict=True)), "models": models}
    (options.out / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    print(f"{report(results)}")


def trained(seed: int, out: Path) -> dict[str, float]:
    """The student trained each way: accuracy on the test set in percent, by method."""
    from edgekit.load import load, parse

    found = {}
    for method in METHODS:
        plan = out / f"{method}-{seed}"
        commands.compress(HERE / f"{method}.toml", plan, seed=seed)
        found[method] = round(100 * sst2.accuracy(load(parse(str(plan))).module, sst2.read("test")), 2)
    return found


def built(out: Path, student: str) -> list[dict[str, Any]]:
    """Teacher and student on their runtime: accuracy in percent, bytes, and median time of a sentence in ms."""
    made = [("teacher", commands.SOURCE, TARGETS[0]), *(("student", out / student, t) for t in TARGETS)]
    rows = []
    for name, source, target in made:
        manifest = commands.build(source, target, out / f"{name}-built")
        metric = round(100 * manifest["parity"]["metric"], 2)
        size = sum(f["size"] for f in manifest["files"])
        rows.append({"model": name, "target": target, "accuracy": metric, "bytes": size})
    folders = [out / f"{name}-built" / target for name, _, target in made]
    for row, measured in zip(rows, commands.bench(folders, folders[0]), strict=True):
        difference = measured["difference"]
        row["p50_ms"] = round(measured["measurement"]["p50_ms"], 3)
        row["times_faster"] = 1.0 if difference is None else round(1 / difference["ratio"], 2)
    return rows


def report(results: dict[str, Any]) -> str:
    """Both tables in Markdown."""
    lines = ["| seed | labels alone | soft targets and features | points |", "|---|---|---|---|"]
    pairs = [(seed, *(by[m] for m in METHODS)) for seed, by in results["seeds"].items()]
    pairs.append(("mean", *(statistics.mean(pair[i] for pair in pairs) for i in (1, 2))))
    lines += [f"| {seed} | {a:.2f} | {b:.2f} | {b - a:+.2f} |" for seed, a, b in pairs]
    lines += ["", "| model | target | accuracy | MB | p50 ms | times faster |", "|---|---|---|---|---|---|"]
    lines += [
        f"| {r['model']} | {r['target']} | {r['accuracy']:.2f} | {r['bytes'] / 1e6:.2f} | {r['p50_ms']:.2f} | "
        f"{r['times_faster']:.2f} |"
        for r in results["models"]
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
