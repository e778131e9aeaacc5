"""Low rank, pruning, distillation, quantization and pairs of them side by side on one model.

    EDGEKIT_DATA=DATA python examples/lowrank_and_friends/lowrank_and_friends.py --out OUT

The model is the classifier of ``examples/sst2`` (fine-tuned at the first call). Every row is a recipe and a target,
through ``edgekit compress``, ``build``, ``pack`` and ``bench``; the accuracy is that of the artifact on its runtime
over the test set. ``OUT/results.json`` has the table, ``OUT/pareto.svg`` the plot. A second call takes finished
recipes and builds from edgekit's cache.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "sst2"))

import commands  # noqa: E402
import pareto  # noqa: E402

DISTILLED = HERE.parent / "sentiment_distill" / "distilled.toml"
SMALL = HERE.parent / "sst2" / "small.toml"


@dataclass(frozen=True, kw_only=True)
class Method:
    """A row: what is done, by which recipe (``None``: nothing in PyTorch), for which target."""

    name: str
    recipe: Path | None
    target: str = "ort-fp32"


@dataclass(frozen=True, kw_only=True)
class Row:
    """A method's figures: multiply-accumulates of a padded sentence, accuracy in percent, bytes of the file and of
    the file coded without loss, median time of a padded sentence in ms."""

    name: str
    target: str
    parameters: int
    macs: int
    accuracy: float
    bytes: int
    packed: int
    p50_ms: float


METHODS = (
    Method(name="as it is", recipe=None),
    Method(name="quantized", recipe=None, target="ort-int8"),
    Method(name="low rank, not trained", recipe=HERE / "low_rank.toml"),
    Method(name="low rank, distilled", recipe=HERE / "low_rank_distilled.toml"),
    Method(name="low-rank embeddings, INT4 weights", recipe=SMALL, target="ort-int4-weights"),
    Method(name="heads and units pruned", recipe=HERE / "pruned.toml"),
    Method(name="distilled student", recipe=DISTILLED),
    Method(name="distilled student, quantized", recipe=DISTILLED, target="ort-int8"),
)


def main() -> None:
    """Run every method, print the table, draw the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("lowrank_and_friends"))
    options = parser.parse_args()
    rows = compared(options.out)
    (options.out / "results.json").write_text(json.dumps([asdict(r) for r in rows], indent=2) + "\n")
    (options.out / "pareto.svg").write_text(pareto.svg(rows))
    print(table(rows))


def compared(out: Path) -> list[Row]:
    """One row a method; all are timed against the first."""
    recipes = dict.fromkeys(m.recipe for m in METHODS if m.recipe is not None)
    steps = {recipe: commands.compress(recipe, out / recipe.stem)["steps"] for recipe in recipes}
    manifests = [built(method, out) for method in METHODS]
    files = [folder(m, out) / known["files"][0]["name"] for m, known in zip(METHODS, manifests, strict=True)]
    packed = [commands.pack(file) for file in files]
    times = commands.bench([file.parent for file in files], files[0].parent)
    whole = steps[DISTILLED][0]["before"]
    sizes = [whole if m.recipe is None else steps[m.recipe][-1]["after"] for m in METHODS]
    return [row(*figures) for figures in zip(METHODS, sizes, manifests, packed, times, strict=True)]


def built(method: Method, out: Path) -> Any:
    """The artifact's manifest."""
    source = commands.SOURCE if method.recipe is None else str(out / method.recipe.stem)
    return commands.build(source, method.target, folder(method, out).parent)


def folder(method: Method, out: Path) -> Path:
    """Where the artifact lies."""
    name = "whole" if method.recipe is None else method.recipe.stem
    return out / f"{name}-built" / method.target


def row(
    method: Method,
    size: Mapping[str, Any],
    manifest: Mapping[str, Any],
    packed: Mapping[str, Any],
    measured: Mapping[str, Any],
) -> Row:
    """The figures in one place."""
    return Row(
        name=method.name,
        target=method.target,
        parameters=size["parameters"],
        macs=size["macs"],
        accuracy=round(100 * manifest["parity"]["metric"], 2),
        bytes=packed["original_bytes"],
        packed=packed["packed_bytes"],
        p50_ms=round(measured["measurement"]["p50_ms"], 3),
    )


def table(rows: Sequence[Row]) -> str:
    """In Markdown."""
    lines = [
        "| method | target | parameters | MACs | accuracy | MB | coded MB | p50 ms |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r.name} | {r.target} | {r.parameters / 1e6:.2f} M | {r.macs / 1e6:.0f} M | {r.accuracy:.2f} | "
        f"{r.bytes / 1e6:.2f} | {r.packed / 1e6:.2f} | {r.p50_ms:.2f} |"
        for r in rows
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
