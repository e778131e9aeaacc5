"""``edgekit compress``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import edgekit
from edgekit.artifact.summary import size
from edgekit.cli._contained import contain_source
from edgekit.cli._options import Grouped, declared, json_flag
from edgekit.cli._output import number, print_json, progress, say, table
from edgekit.core.config import Options
from edgekit.core.progress import Reporter
from edgekit.errors import UsageError
from edgekit.load.spec import parse

if TYPE_CHECKING:
    from edgekit.compress.step import Size


@click.command(cls=Grouped)
@click.argument("source")
@click.option(
    "--recipe", metavar="FILE|STEPS", help="A recipe file, or steps: 'prune(sparsity=0.9);cluster'."
)
@click.option(
    "--budget",
    metavar="LIMITS",
    help="Search for a recipe: 'drop<=1pt,ekz<=300KB,latency<=5ms@pi5'; also file<=, download<=.",
)
@click.option(
    "--analyze", is_flag=True, help="Show what the layers' distributions speak for, and change nothing."
)
@click.option("--steps", metavar="S[,S…]", help="Steps among which the search may choose (default: all).")
@click.option("--time", metavar="10m", help="How long to search (default: 10m).")
@click.option(
    "--workers",
    type=click.IntRange(min=1, max=256),
    metavar="N",
    help="Processes that measure the search's candidates (default: 1).",
)
@click.option("--trials", type=click.IntRange(min=1), help="How many recipes to try at most.")
@click.option(
    "--epochs",
    type=click.FloatRange(min=0),
    help="How many epochs a candidate may train (default: what fits into 1/32 of the time).",
)
@click.option(
    "--seed", type=click.IntRange(min=0), help="Seed of everything random (default: the recipe's, 0)."
)
@click.option(
    "--out",
    "-o",
    metavar="DIR",
    default="build/compressed",
    help="Where the result goes (default: build/compressed).",
)
@json_flag
@declared("compress")
def compress(
    source: str,
    options: Options,
    recipe: str | None,
    budget: str | None,
    analyze: bool,
    seed: int | None,
    out: str,
    as_json: bool,
    **limits: Any,
) -> None:
    """Compress SOURCE in PyTorch: run a recipe of steps, or search for one that holds a budget.

    DIR gets the plan (plan.json and safetensors, no code), the recipe as a file, and is itself a source:
    edgekit build DIR. The same recipe and seed give the same bytes. A run that was killed goes on.
    """
    from edgekit.compress.training.settings import is_first_process

    if sum(map(bool, (recipe, budget, analyze))) != 1:
        raise UsageError(
            "say what to do: exactly one of --recipe, --budget and --analyze",
            hint="edgekit compress SOURCE --recipe 'prune(sparsity=0.5)'",
        )
    idle = [f"--{flag}" for flag, value in limits.items() if value is not None and not budget]
    if idle:
        raise UsageError(
            f"{', '.join(idle)} limit{'s' if len(idle) == 1 else ''} a search, and no --budget is given",
            hint="say what the model may cost: --budget 'drop<=1pt'",
        )
    options = replace(options, out=Path(out))
    contain_source(parse(source), options)
    with progress() as shown:
        if analyze:
            _analyze(source, options, shown, as_json)
            return
        result = edgekit.compress(
            source,
            recipe=recipe,
            budget=budget,
            limits=_limits(seed, **limits) if budget else None,
            seed=seed,
            out=out,
            options=options,
            progress=shown.tell,
        )
    if result.search is not None:
        _show_search(source, result, result.search, as_json)
    elif is_first_process():
        _show_recipe(result, as_json)


def _limits(
    seed: int | None,
    *,
    steps: str | None,
    time: str | None,
    trials: int | None,
    epochs: float | None,
    workers: int | None,
) -> edgekit.Limits:
    from edgekit.search.limits import parse_limits, step_names

    return replace(parse_limits(time, trials, seed, epochs, workers), steps=step_names(steps))


def _analyze(source: str, options: Options, shown: Reporter, as_json: bool) -> None:
    from edgekit.pipeline.api import context
    from edgekit.pipeline.compress import analyze
    from edgekit.search.compress import opened

    work = context(options, shown.tell)
    found = analyze(work, opened(work, source))
    layers = found.layers
    if as_json:
        document = {"layers": layers, "blocks": found.blocks, "advice": found.advice}
        print_json({"source": source, **document})
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
                number(None if a is None else a.peak, ".1f"),
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
            say(f"{layer.name}: {advice.method}: {advice.why}", err=True)
    for advice in found.advice:
        say(f"the whole model: {advice.method}: {advice.why}", err=True)


def _show_search(
    source: str, result: edgekit.CompressResult, found: edgekit.SearchResult, as_json: bool
) -> None:
    if as_json:
        print_json(
            {
                "recipe": str(result.folder / "recipe.toml"),
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
        "no other is smaller and better",
        ("recipe", "target", ".ekz", "file", "download", "drop", "p50 ms", ""),
        _front(found),
    )
    for line in found.why:
        say(line, err=True)
    for line in found.rejected:
        say(f"not confirmed: {line}", err=True)
    say(
        f"{found.metric} {found.base_metric:.4f}, drop {100 * found.seen.value:.2f} pt where the search looked and "
        f"{100 * found.unseen.value:.2f} pt where it did not, at most {100 * found.trial.bound:.2f} pt with the margin "
        f"for chance; {found.shipped.size:,} bytes in {found.shipped.packed}; "
        f"again: edgekit compress {source} --recipe {result.folder / 'recipe.toml'}",
        err=True,
    )


def _front(found: edgekit.SearchResult) -> list[tuple[str, ...]]:
    return [
        (
            p.line or "-",
            p.target,
            ("" if p.exact else "~") + f"{p.size:,}",
            ("" if p.built else "~") + f"{p.file:,}",
            ("" if p.built else "~") + f"{p.download:,}",
            f"{100 * p.drop:.2f} pt",
            number(p.latency_ms, ".2f"),
            "chosen" if (p.line, p.target) == (found.trial.line, found.trial.target) else "",
        )
        for p in found.front
    ]


def _show_recipe(result: edgekit.CompressResult, as_json: bool) -> None:
    recipe, packed = result.recipe, result.packed
    if as_json:
        document: dict[str, object] = {
            "folder": str(result.folder),
            "recipe": recipe.line,
            "seed": recipe.seed,
            "metric": result.metric,
            "steps": result.steps,
        }
        if packed is not None:
            document["shipped"] = {"path": str(packed), "bytes": result.packed_bytes}
        print_json(document)
        return
    columns = ("step", "parameters", "not zero", "MACs", "bytes", result.metric or "metric", "seconds")
    table("", columns, _rows(result.steps))
    say(
        f"{result.folder}: a source for edgekit build; the recipe is {result.folder / 'recipe.toml'}",
        err=True,
    )
    if packed is not None:
        say(f"{packed}: {result.packed_bytes:,} bytes", err=True)


def _rows(steps: Sequence[edgekit.StepReport]) -> list[tuple[str, ...]]:
    first = [("before", *_figures(steps[0].before), "-")] if steps else []
    return [*first, *((s.step, *_figures(s.after), f"{s.seconds:.1f}") for s in steps)]


def _figures(at: Size) -> tuple[str, ...]:
    counts = (f"{at.parameters:,}", f"{at.nonzero:,}", f"{at.macs:,}", size(at.bytes))
    return (*counts, number(at.metric, ".4f"))


@click.command("train-part", hidden=True)
@click.argument("order", type=click.Path(path_type=Path))
@click.option("--processes", type=int, default=0)
@click.option("--parent", type=int, default=0)
def train_part(order: Path, processes: int, parent: int) -> None:
    """Launch the processes that train together, or be one of them."""
    import os

    from edgekit.compress.training.settings import is_first_process
    from edgekit.core.orphans import die_with

    die_with(parent or os.getppid())
    if processes:
        from edgekit.pipeline.several import launch

        launch(order, processes)
        return
    from edgekit.pipeline.train_part import take_part

    with progress() as shown:
        take_part(order, shown.tell if is_first_process() else None)


@click.command("search-part", hidden=True)
@click.argument("order", type=click.Path(path_type=Path))
@click.option("--parent", type=int, required=True)
def search_part(order: Path, parent: int) -> None:
    """Measure candidates for a search."""
    from edgekit.core.orphans import die_with
    from edgekit.search import part

    die_with(parent)
    part.work(order)
