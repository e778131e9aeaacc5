"""``--max-drop``: layers fall back to float, the fewest that suffice, until the budget holds on the real runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.core.structure import to_builtins
from edgekit.errors import BackendError, UnsupportedError
from edgekit.pipeline.cached import Step, rows_reader, run
from edgekit.pipeline.stages import QUANTIZE_PACKAGES, BuildContext, Calibrated, work
from edgekit.quantize.options import QuantizeOptions
from edgekit.types import Json, OnnxModel, Parity, Target

if TYPE_CHECKING:
    from edgekit.quantize.sensitivity import LayerSensitivity


@dataclass(frozen=True, kw_only=True)
class Found:
    """What the guard settled on. ``restored`` are the layers that are not INT8, ``facts`` what else the manifest says
    of the search. ``in_float``: the same layers in float, where it settled on INT16 activations."""

    choice: QuantizeOptions
    drop: float
    precision: str
    restored: tuple[Mapping[str, Json], ...] = ()
    facts: Mapping[str, Json] = field(default_factory=dict)
    in_float: QuantizeOptions | None = None

    @property
    def account(self) -> dict[str, Json]:
        """For the manifest."""
        restored = [{**layer, "precision": self.precision} for layer in self.restored]
        return {**self.facts, "drop": self.drop, "precision": self.precision, "restored": restored}

    def as_float(self, drop: float, why: str) -> Found:
        """The outcome with the layers in float instead."""
        assert self.in_float is not None
        facts = {**self.facts, "instead": why}
        return replace(self, choice=self.in_float, drop=drop, precision="float32", facts=facts, in_float=None)


def spent_by_recipe(parity: Parity) -> float:
    """What the recipe alone lost of the source's metric: no layer in float brings it back."""
    if parity.recipe_metric is None or parity.reference_metric is None:
        return 0.0
    lost = parity.reference_metric - parity.recipe_metric
    return lost if parity.higher_is_better else -lost


def drop_of(parity: Parity) -> tuple[str, float]:
    """What the budget is held against, and its value: the drop of the task's metric."""
    if parity.nonfinite or parity.metric_drop is None:
        return "non-finite values", float("inf")
    return f"drop of {parity.metric_name}", parity.metric_drop


def search(
    context: BuildContext,
    model: OnnxModel,
    target: Target,
    calibrated: Calibrated,
    budget: float,
    measure: Callable[[QuantizeOptions], Parity | None],
) -> Found:
    """Find the quantization that holds ``budget``; ``measure`` builds, runs and compares one.

    Where the runtime has INT16 activations among INT8 ones, layers get these first, and float where they do not
    suffice. Ctrl-C ends the search with the best so far.
    """
    from edgekit.quantize.guard import guard
    from edgekit.quantize.rules import table

    int16 = target.scheme is not None and table(target.scheme.rules).int16
    options = QuantizeOptions.of(context.options, target)
    kinds: list[str] = []

    def drop(candidate: QuantizeOptions) -> float:
        try:
            parity = measure(candidate)
        except (UnsupportedError, BackendError) as error:  # a kernel that has no INT16 form
            if candidate.int16 == options.int16:
                raise
            context.progress.note(f"guard: not with INT16 activations: {error.message}")
            return float("inf")
        if parity is None:
            return float("inf")
        kind, value = drop_of(parity)
        kinds.append(kind)
        return value

    with context.progress.task(f"guard {target.name}") as task:

        def progressed(done: int, remaining: int, best: float) -> None:
            task.total(done + remaining)
            task.advance()
            context.progress.note(
                f"guard: {done} evaluations, at most {remaining} remain, best drop {best:.4g}"
            )

        ranking = sensitivities(context, model, target, calibrated, options)
        found = guard(drop, ranking, budget, options, int16=int16, progress=progressed)
    in_float = None
    if found.precision == "int16" and found.restored:
        names = tuple(layer.node for layer in found.restored)
        in_float = replace(options, exclude=(*options.exclude, *names))
    return Found(
        choice=found.options,
        drop=found.drop,
        precision=found.precision,
        restored=tuple(
            {**to_builtins(layer), "why": f"alone in integers it leaves {layer.snr_db:.1f} dB at the outputs"}
            for layer in found.restored
        ),
        facts={
            "budget": budget,
            "held_against": kinds[-1] if kinds else "",
            "met": found.met,
            "finished": found.finished,
            "evaluations": [to_builtins(e) for e in found.trail],
        },
        in_float=in_float,
    )


def sensitivities(
    context: BuildContext, model: OnnxModel, target: Target, calibrated: Calibrated, options: QuantizeOptions
) -> tuple[LayerSensitivity, ...]:
    """Every layer that multiplies, the most harmful first; cached."""
    from edgekit.quantize.sensitivity import LayerSensitivity

    def produce(out: Path) -> None:
        work(context).sensitivity(model, (calibrated.file, calibrated.samples), target, options, out)

    step = Step(
        name="sensitivity",
        inputs=(model.sha256, calibrated.sha256),
        options={"scheme": to_builtins(target.scheme), "options": to_builtins(options)},
        packages=QUANTIZE_PACKAGES,
        produce=produce,
        read=rows_reader(LayerSensitivity, "sensitivity.json"),
    )
    return run(context.store, step).value
