"""``edgekit compress``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from edgekit.compress.recipes import Recipe
    from edgekit.compressing import Compressed
    from edgekit.source import Source
    from edgekit.stages import Workshop


@click.command()
@click.argument("source")
@click.option(
    "--recipe", metavar="FILE|STEPS", help="A recipe file, or steps: 'prune(sparsity=0.9);cluster'."
)
@click.option(
    "--budget", metavar="LIMITS", help="Search for a recipe: 'drop<=1pt,size<=300KB,latency<=5ms@pi5'."
)
@click.option(
    "--analyze", is_flag=True, help="Show what the layers' distributions speak for, and change nothing."
)
@click.option(
    "--task",
    metavar="TASK",
    help="classification, token-classification, regression, embedding, or your own: file.py:name.",
)
@click.option("--train", metavar="DATA", help="Labelled inputs to train on: file.py:callable, .npz, images.")
@click.option("--eval", "evaluate", metavar="DATA", help="Labelled inputs to judge by.")
@click.option("--calib", metavar="DATA", help="Calibration inputs, where the search may quantize.")
@click.option("--target", "-t", metavar="T[,T…]", help="Targets among which the search may choose.")
@click.option("--time", "seconds", metavar="10m", help="How long to search (default: 10m).")
@click.option("--trials", type=click.IntRange(min=1), help="How many recipes to try at most.")
@click.option(
    "--seed", type=click.IntRange(min=0), help="Seed of everything random (default: the recipe's, 0)."
)
@click.option("--accelerator", type=click.Choice(["auto", "cpu", "cuda", "mps"]), help="Where to train.")
@click.option("--log", multiple=True, metavar="NAME", help="Training curves to tensorboard, mlflow or wandb.")
@click.option("--out", "-o", metavar="DIR", help="Where the result goes (default: build/compressed).")
@click.option("--trust", is_flag=True, help="Allow sources that execute code when loaded (pickles).")
@click.option("--network", is_flag=True, help="Allow a source to download.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def compress(
    source: str,
    recipe: str | None,
    budget: str | None,
    analyze: bool,
    evaluate: str | None,
    seconds: str | None,
    trials: int | None,
    seed: int | None,
    out: str | None,
    as_json: bool,
    **flags: Any,
) -> None:
    """Compress SOURCE in PyTorch: run a recipe of steps, or search for one that holds a budget.

    DIR gets the plan (plan.json and safetensors, no code), the recipe as a file, and is itself a source:
    edgekit build DIR. The same recipe and seed give the same bytes. A run that was killed goes on.
    """
    from edgekit import config
    from edgekit.cli._output import progress
    from edgekit.errors import UsageError
    from edgekit.load import parse
    from edgekit.source import Source
    from edgekit.stages import Workshop
    from edgekit.store import Store

    if sum(map(bool, (recipe, budget, analyze))) != 1:
        raise UsageError(
            "say what to do: exactly one of --recipe, --budget and --analyze",
            hint="edgekit compress SOURCE --recipe 'prune(sparsity=0.5)'",
        )
    options = config.load({**flags, "eval": evaluate, "out": out or "build/compressed"})
    store = Store()
    opened = Source(parse(source), store, trust=options.trust, network=options.network)
    with progress() as shown:
        shop = Workshop(store=store, options=options, progress=shown)
        if recipe:
            _run(shop, opened, recipe, seed, as_json)


def _run(shop: Workshop, source: Source, text: str, seed: int | None, as_json: bool) -> None:
    from edgekit.compress import recipes
    from edgekit.compress.resume import is_first_process
    from edgekit.compressing import compress as run
    from edgekit.compressing import deliver

    recipe = recipes.read(text, seed=seed)
    made = run(shop, source, recipe)
    if not is_first_process():
        return
    folder = deliver(made, recipe, source, Path(shop.options.out))
    _show(made, recipe, folder, as_json)


def _show(made: Compressed, recipe: Recipe, folder: Path, as_json: bool) -> None:
    from edgekit.cli._output import print_json, table

    if as_json:
        print_json(
            {
                "folder": str(folder),
                "recipe": recipe.line,
                "seed": recipe.seed,
                "metric": made.metric,
                "steps": made.rows,
            }
        )
        return
    columns = ("step", "parameters", "not zero", "MACs", "bytes", made.metric or "metric", "seconds")
    table("", columns, _rows(made.rows))
    click.echo(f"{folder}: a source for edgekit build; the recipe is {folder / 'recipe.toml'}", err=True)


def _rows(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    from edgekit.cli._output import size

    def figures(at: Mapping[str, Any]) -> tuple[str, ...]:
        metric = "-" if at["metric"] is None else f"{at['metric']:.4f}"
        return (f"{at['parameters']:,}", f"{at['nonzero']:,}", f"{at['macs']:,}", size(at["bytes"]), metric)

    first = [("before", *figures(rows[0]["before"]), "-")] if rows else []
    return [*first, *((row["step"], *figures(row["after"]), f"{row['seconds']:.1f}") for row in rows)]
