"""Is the search under a budget worth its time: never larger than the best single method, the budget held on data that
it did not see, the same bytes again.

    python tools/check_search.py lenet5 resnet20 squeezenet minilm --time 10m --single-time 2m --out OUT

For each network: ``edgekit compress --budget`` with all steps, then with each step alone (searches of their own, over
all strengths, choices and targets of that step), then the winner on data that no search was given. Again: the same
command into another folder, and the recipe that was found, each compared byte by byte. What is there already in OUT is
not done again. ``--table FILE`` puts the table between the markers of that Markdown file.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
NETWORKS = "tools/search_networks.py"
NAMES = {
    "lenet5": "LeNet-5", "resnet20": "ResNet-20", "squeezenet": "SqueezeNet 1.0", "minilm": "MiniLM-L6 + head",
}  # fmt: skip
BEGIN, END = "<!-- check_search -->", "<!-- /check_search -->"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One network. Sizes in bytes of the ``.ekz``, drops as shares; ``same`` and ``again`` say whether the second
    search and the recipe gave the same bytes."""

    net: str
    source: int
    recipe: str
    size: int
    seen: float
    held: float
    unseen: float
    single: str
    single_size: int
    tried: int
    seconds: float
    same: bool
    again: bool


def main() -> None:
    """Run what is asked for and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("nets", nargs="+", choices=sorted(NAMES))
    parser.add_argument("--budget", default="drop<=1pt")
    parser.add_argument("--time", default="10m")
    parser.add_argument("--single-time", default="2m")
    parser.add_argument("--steps", default="", help="single methods to compare with (default: all)")
    parser.add_argument("--out", type=Path, default=Path("check-search"))
    parser.add_argument("--table", type=Path)
    args = parser.parse_args()
    rows = [checked(net, args) for net in args.nets]
    for row in rows:
        print(json.dumps(asdict(row)))
    table = rendered(rows)
    print(table)
    if args.table:
        text = args.table.read_text(encoding="utf-8")
        head, _, rest = text.partition(BEGIN)
        args.table.write_text(f"{head}{BEGIN}\n{table}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


def checked(net: str, args: argparse.Namespace) -> Row:
    """All runs of one network."""
    out = args.out.resolve() / net
    whole = searched(net, args.budget, args.time, out / "all")
    singles = {}
    for step in args.steps.split(",") if args.steps else steps():
        found = searched(net, args.budget, args.single_time, out / step, "--steps", step)
        if found:
            singles[step] = found["winner"]
    best = min(singles, key=lambda s: singles[s]["size"]) if singles else ""
    packed = Path(whole["packed"])
    second = searched(net, args.budget, args.time, out / "second")
    replayed(net, out / "all" / "recipe.toml", out / "again")
    journal = [json.loads(x) for x in (out / "all" / "search.jsonl").read_text().splitlines()[1:]]
    source = min(p["size"] for p in journal if not p["line"] and not p["error"])
    return Row(
        net=net,
        source=source,
        recipe=f"{whole['winner']['line'] or 'nothing'} → {whole['winner']['target']}",
        size=packed.stat().st_size,
        seen=whole["seen"]["drop"],
        held=whole["unseen"]["drop"],
        unseen=unseen(net, Path(whole["artifact"]) / "model.onnx"),
        single=f"{singles[best]['line'] or 'nothing'} → {singles[best]['target']}" if best else "",
        single_size=singles[best]["size"] if best else 0,
        tried=whole["tried"],
        seconds=whole["wall"],
        same=Path(second["packed"]).read_bytes() == packed.read_bytes(),
        again=(out / "again" / packed.name).read_bytes() == packed.read_bytes(),
    )


def steps() -> list[str]:
    """Steps that make something smaller by themselves."""
    from edgekit.search.space import methods

    return [m.name for m in methods(max_epochs=1.0) if not m.aid]


def command(net: str, out: Path) -> list[str]:
    """What all runs of a network share."""
    at = f"{NETWORKS}:{net}"
    data = ["--calib", f"{at}_calib"] if net == "squeezenet" else ["--train", f"{at}_train"]
    task = ["--task", "classification(batch=64)", "--eval", f"{at}_eval"]
    return ["compress", at, *task, *data, "--out", str(out), "--json"]


def searched(net: str, budget: str, limit: str, out: Path, *more: str) -> dict[str, Any]:
    """A search's document; empty where nothing held the budget. Kept in ``out``."""
    kept = out / "check.json"
    if kept.is_file():
        document: dict[str, Any] = json.loads(kept.read_text())
        return document
    begin = time.monotonic()
    done = edgekit([*command(net, out), "--budget", budget, "--time", limit, *more], out)
    if done.returncode not in (0, 5):
        raise SystemExit(f"{out}: exit code {done.returncode}, see {out}.log")
    document = json.loads(done.stdout) if done.returncode == 0 else {}
    document["wall"] = round(time.monotonic() - begin, 1)
    if done.returncode == 5:
        document = {}
    out.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(document))
    return document


def replayed(net: str, recipe: Path, out: Path) -> None:
    """Run the recipe with an empty cache."""
    if not (out / "recipe.toml").is_file():
        done = edgekit([*command(net, out), "--recipe", str(recipe)], out, cache=f"{out}.cache")
        if done.returncode:
            raise SystemExit(f"{out}: exit code {done.returncode}, see {out}.log")


def edgekit(arguments: Sequence[str], out: Path, cache: str = "") -> subprocess.CompletedProcess[str]:
    """Run the command line; what it says goes to ``OUT.log``."""
    out.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, **({"EDGEKIT_CACHE": cache} if cache else {})}
    with Path(f"{out}.log").open("w", encoding="utf-8") as log:
        return subprocess.run(
            [sys.executable, "-m", "edgekit", *arguments],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            check=False,
        )


def unseen(net: str, artifact: Path) -> float:
    """What the artifact loses against the source on data that no search was given."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    sys.path.insert(0, str(ROOT / "tools"))
    import onnxruntime
    import search_networks
    import torch

    model = getattr(search_networks, net)().module
    running = onnxruntime.InferenceSession(str(artifact), providers=["CPUExecutionProvider"])
    before = after = count = 0
    with torch.no_grad():
        for inputs, label in getattr(search_networks, f"{net}_unseen")():
            scores = model(**{k: torch.from_numpy(v) for k, v in inputs.items()})
            before += int(int(scores.argmax()) == label)
            after += int(int(running.run(None, dict(inputs))[0].argmax()) == label)
            count += 1
    return (before - after) / count


def rendered(rows: Sequence[Row]) -> str:
    """The table in Markdown."""
    lines = [
        "| network | source, coded | found | bytes | best single method | bytes | drop: seen, held out, never given "
        "| tried | same bytes again |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        drops = ", ".join(f"{100 * d:.2f}" for d in (r.seen, r.held, r.unseen))
        again = (
            "search and recipe"
            if r.same and r.again
            else "search"
            if r.same
            else "recipe"
            if r.again
            else "no"
        )
        lines.append(
            f"| {NAMES[r.net]} | {r.source:,} | `{r.recipe}` | {r.size:,} | `{r.single}` | {r.single_size:,} "
            f"| {drops} | {r.tried} | {again} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
