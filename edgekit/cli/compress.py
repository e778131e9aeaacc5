"""``edgekit compress``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgekit.cli._options import Grouped, declared, json_flag

if TYPE_CHECKING:
    from edgekit.compress.recipes import Recipe
    from edgekit.compress.step import Size, StepReport
    from edgekit.core.config import Options
    from edgekit.load.source import Source
    from edgekit.pipeline.compress import Compressed
    from edgekit.pipeline.stages import BuildContext
    from edgekit.search.limits import Limits
    from edgekit.search.run import SearchResult
    from edgekit.search.ship import Shipped


@click.command(cls=Grouped)
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
@click.option("--steps", metavar="S[,S…]", help="Steps among which the search may choose (default: all).")
@click.option("--time", "seconds", metavar="10m", help="How long to search (default: 10m).")
@click.option("--trials", type=click.IntRange(min=1), help="How many recipes to try at most.")
@click.option(
    "--epochs",
    type=click.FloatRange(min=0),
    help="How many epochs a candidate may train (default: what fits into 1/32 of the time).",
)
@click.option(
    "--seed", type=click.IntRange(min=0), help="Seed of everything random (default: the recipe's, 0)."
)
@click.option("--out", "-o", metavar="DIR", help="Where the result goes (default: build/compressed).")
@json_flag
@declared("compress")
def compress(
    source: str,
    options: Options,
    recipe: str | None,
    budget: str | None,
    analyze: bool,
    steps: str | None,
    seconds: str | None,
    trials: int | None,
    epochs: float | None,
    seed: int | None,
    out: str | None,
    as_json: bool,
) -> None:
    """Compress SOURCE in PyTorch: run a recipe of steps, or search for one that holds a budget.

    DIR gets the plan (plan.json and safetensors, no code), the recipe as a file, and is itself a source:
    edgekit build DIR. The same recipe and seed give the same bytes. A run that was killed goes on.
    """
    from dataclasses import replace

    from edgekit.cli._output import progress
    from edgekit.core.store import Store
    from edgekit.errors import UsageError
    from edgekit.load import parse
    from edgekit.load.source import Source
    from edgekit.pipeline.stages import BuildContext
    from edgekit.search.limits import parse_limits, search_options, step_names

    if sum(map(bool, (recipe, budget, analyze))) != 1:
        raise UsageError(
            "say what to do: exactly one of --recipe, --budget and --analyze",
            hint="edgekit compress SOURCE --recipe 'prune(sparsity=0.5)'",
        )
    given = {"--steps": steps, "--time": seconds, "--trials": trials, "--epochs": epochs}
    idle = [flag for flag, value in given.items() if value is not None and not budget]
    if idle:
        raise UsageError(
            f"{', '.join(idle)} limit{'s' if len(idle) == 1 else ''} a search, and no --budget is given",
            hint="say what the model may cost: --budget 'drop<=1pt'",
        )
    options = search_options(replace(options, out=Path(out or "build/compressed")))
    with progress() as shown:
        store = Store(report=shown.note)
        opened = Source(parse(source), store, trust=options.trust, network=options.network)
        context = BuildContext(store=store, options=options, progress=shown)
        if recipe:
            _run(context, opened, recipe, seed, as_json)
        elif budget:
            limits = parse_limits(seconds, trials, seed, epochs)
            _search(context, opened, budget, replace(limits, steps=step_names(steps)), as_json)
        else:
            _analyze(context, opened, as_json)


def _run(context: BuildContext, source: Source, text: str, seed: int | None, as_json: bool) -> None:
    from edgekit.compress import recipes
    from edgekit.compress.training.settings import is_first_process
    from edgekit.pipeline.compress import compress as run
    from edgekit.pipeline.compress import deliver

    recipe = recipes.read(text, seed=seed)
    made = run(context, source, recipe)
    if not is_first_process():
        return
    folder = deliver(made, recipe, source, Path(context.options.out))
    shipped = None
    if recipe.ship is not None:
        from edgekit.search.ship import ship

        shipped = ship(context, made.source, recipe.ship)
    _show(made, recipe, folder, shipped, as_json)


def _search(context: BuildContext, source: Source, budget: str, limits: Limits, as_json: bool) -> None:
    from edgekit.cli._output import print_json, table
    from edgekit.search.budget import parse
    from edgekit.search.run import search

    found = search(context, source, parse(budget), limits)
    out = Path(context.options.out)
    if as_json:
        print_json(
            {
                "recipe": str(out / "recipe.toml"),
                "artifact": str(found.shipped.artifact.directory),
                "packed": str(found.shipped.packed),
                "winner": found.trial,
                "metric": found.metric,
                "base_metric": found.base_metric,
                "seen": {"base_metric": found.base_metric, "drop": found.seen.value},
                "unseen": {"base_metric": found.held_base, "drop": found.unseen.value},
                "tried": len(found.trials),
                "front": found.front,
                "rejected": found.rejected,
                "why": found.why,
                "interrupted": found.interrupted,
            }
        )
        return
    table(
        "no other is smaller and better", ("recipe", "target", "bytes", "drop", "p50 ms", ""), _front(found)
    )
    for line in found.why:
        click.echo(line, err=True)
    for line in found.rejected:
        click.echo(f"not confirmed: {line}", err=True)
    click.echo(
        f"{found.metric} {found.base_metric:.4f}, drop {100 * found.seen.value:.2f} pt where the search looked and "
        f"{100 * found.unseen.value:.2f} pt where it did not, at most {100 * found.trial.bound:.2f} pt with the margin "
        f"for chance; {found.shipped.size:,} bytes in {found.shipped.packed}; "
        f"again: edgekit compress {source.spec.text} --recipe {out / 'recipe.toml'}",
        err=True,
    )


def _analyze(context: BuildContext, source: Source, as_json: bool) -> None:
    from edgekit.cli._output import print_json, table
    from edgekit.pipeline.compress import analyze

    found = analyze(context, source)
    layers = found.layers
    if as_json:
        document = {"layers": layers, "blocks": found.blocks, "advice": found.advice}
        print_json({"source": source.spec.text, **document})
        return
    rows = []
    for layer in layers:
        w, a = layer.weights, layer.activations
        rows.append(
            (
                layer.name,
                "×".join(map(str, layer.shape)),
                f"{layer.share:.1%}",
                f"{w.std:.3g}",
                f"{w.kurtosis:.1f}",
                f"{w.density:.0%}",
                f"{w.small:.0%}",
                f"{w.rank:.0%}",
                f"{w.bits:.1f}",
                "-" if a is None else f"{a.peak:.1f}",
                "-" if a is None else f"{a.dead}/{a.channels}",
                layer.advice[0].method,
            )
        )
    columns = (
        "layer",
        "weight",
        "share",
        "std",
        "kurtosis",
        "density",
        "small",
        "rank",
        "bits",
        "peak",
        "dead",
    )
    table("", (*columns, "speaks for"), rows)
    for layer in layers:
        for advice in layer.advice:
            click.echo(f"{layer.name}: {advice.method}: {advice.why}", err=True)
    for advice in found.advice:
        click.echo(f"the whole model: {advice.method}: {advice.why}", err=True)


def _front(found: SearchResult) -> list[tuple[str, ...]]:
    return [
        (
            p.line or "-",
            p.target,
            ("" if p.exact else "~") + f"{p.size:,}",
            f"{100 * p.drop:.2f} pt",
            "-" if p.latency_ms is None else f"{p.latency_ms:.2f}",
            "chosen" if (p.line, p.target) == (found.trial.line, found.trial.target) else "",
        )
        for p in found.front
    ]


def _show(made: Compressed, recipe: Recipe, folder: Path, shipped: Shipped | None, as_json: bool) -> None:
    from edgekit.cli._output import print_json, table

    if as_json:
        document = {
            "folder": str(folder),
            "recipe": recipe.line,
            "seed": recipe.seed,
            "metric": made.report.metric,
            "steps": made.report.steps,
        }
        if shipped is not None:
            document["shipped"] = {"path": str(shipped.packed), "bytes": shipped.size}
        print_json(document)
        return
    columns = ("step", "parameters", "not zero", "MACs", "bytes", made.report.metric or "metric", "seconds")
    table("", columns, _rows(made.report.steps))
    click.echo(f"{folder}: a source for edgekit build; the recipe is {folder / 'recipe.toml'}", err=True)
    if shipped is not None:
        click.echo(f"{shipped.packed}: {shipped.size:,} bytes", err=True)


def _rows(steps: Sequence[StepReport]) -> list[tuple[str, ...]]:
    from edgekit.cli._output import size

    def figures(at: Size) -> tuple[str, ...]:
        metric = "-" if at.metric is None else f"{at.metric:.4f}"
        return (f"{at.parameters:,}", f"{at.nonzero:,}", f"{at.macs:,}", size(at.bytes), metric)

    first = [("before", *figures(steps[0].before), "-")] if steps else []
    return [*first, *((s.step, *figures(s.after), f"{s.seconds:.1f}") for s in steps)]
