"""What the public functions are given, as a request: sources in memory or as text, samples, options.

:mod:`edgekit` has the functions; the command line calls the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from edgekit.artifact.language import TASK
from edgekit.artifact.task import refuse_unknown
from edgekit.core import targets as catalogue
from edgekit.core.config import Options
from edgekit.core.progress import Listener, reporting
from edgekit.core.store import Store
from edgekit.errors import DataError, UsageError
from edgekit.load import parse
from edgekit.load.data import DataSpec, Example, peekable
from edgekit.load.source import MODULE
from edgekit.pipeline import build, language, stages
from edgekit.pipeline.build import Outcome
from edgekit.pipeline.request import Request, check
from edgekit.pipeline.stages import BuildContext
from edgekit.types import Finding, SourceSpec, TorchModel

if TYPE_CHECKING:
    import torch

    from edgekit.quantize.calibrate.calibration import Calibration
    from edgekit.types import Array

    ModelSource: TypeAlias = str | Path | torch.nn.Module | torch.export.ExportedProgram | TorchModel


@dataclass(frozen=True, kw_only=True)
class CalibrationResult:
    """Statistics of every activation of a model (``calibration.range(tensor, method)``), and what the calibration
    doctor makes of the samples."""

    calibration: Calibration
    file: Path
    fingerprint: str
    samples: int
    findings: tuple[Finding, ...]

    def __repr__(self) -> str:
        tensors = len(self.calibration.tensors)
        return f"CalibrationResult({tensors} tensors, {self.samples} samples, {len(self.findings)} findings)"


def context(options: Options, listener: Listener | None) -> BuildContext:
    """What every stage needs, with the cache of this machine."""
    progress = reporting(listener)
    return BuildContext(store=Store(report=progress.note), options=options, progress=progress)


def options_with(
    options: Options | None, *, targets: str | Iterable[str] | None, out: str | Path | None
) -> Options:
    """The options in force, with what the caller gives beside them."""
    changes: dict[str, object] = {}
    if targets is not None:
        named = isinstance(targets, Iterable) and not isinstance(targets, str)
        changes["target"] = tuple(targets) if named else targets
    if out is not None:
        changes["out"] = out
    if options is None:
        return Options.load(changes)
    return replace(options, **changes)  # type: ignore[arg-type]  # checked by Options


def request(
    source: ModelSource,
    example_inputs: object,
    options: Options,
    *,
    calibration: DataSpec | None,
    evaluation: DataSpec | None,
) -> Request:
    """A request for no target yet; DATA that is not given is that of the options.

    Raises :class:`UnknownNameError` for a task that there is not.
    """
    refuse_unknown(options.task)
    calibration = peekable(options.calib or None if calibration is None else calibration)
    evaluation = peekable(options.eval or None if evaluation is None else evaluation)
    spec, module = opened(source, example_inputs, calibration if calibration is not None else evaluation)
    return Request(
        source=spec,
        targets=(),
        options=options,
        calibration=calibration,
        evaluation=evaluation,
        module=module,
    )


def opened(
    source: ModelSource, example_inputs: object, data: DataSpec | None
) -> tuple[SourceSpec, TorchModel | None]:
    """A SOURCE text, or a module in memory bound to its example inputs (default: the first of ``data``)."""
    if isinstance(source, str | Path):
        if example_inputs is not None:
            raise UsageError(
                f"{source} is a source by name: it brings its own example inputs",
                hint="leave example_inputs out, or give the module itself",
            )
        return parse(str(source)), None
    import torch

    from edgekit.load.factory import from_result

    module = source.module if isinstance(source, TorchModel) else source
    if not isinstance(module, torch.nn.Module | torch.export.ExportedProgram):
        raise UsageError(
            f"a {type(source).__qualname__} is no source",
            hint="give a torch.nn.Module, a TorchModel, or a text such as model.py:factory or model.onnx",
        )
    bound = source if example_inputs is None else (module, example_inputs)
    example = Example(data)
    model = from_result(bound, type(module).__qualname__, example.raw if example.given else None)
    return SourceSpec(text=type(module).__qualname__, kind=MODULE), model


def built(asked: Request, context: BuildContext) -> tuple[Outcome, ...]:
    """Build every target of the options; those of language models go their own way."""
    targets = catalogue.select(asked.options.target)
    plain = tuple(t for t in targets if not t.task)
    spoken = tuple(t for t in targets if t.task)
    if asked.options.task == TASK and plain:
        raise UsageError(
            f"{', '.join(t.name for t in plain)} is a plain forward: it has no cache and no tokenizer",
            hint=f"--task {TASK} is for {', '.join(t.name for t in catalogue.known().values() if t.task)}",
        )
    outcomes = build.run(replace(asked, targets=plain), context) if plain else ()
    outcomes += language.build(replace(asked, targets=spoken), context) if spoken else ()
    by_name = {o.target.name: o for o in outcomes}
    return tuple(by_name[t.name] for t in targets)


def checked(source: str, options: Options) -> Request:
    """The request of a build of which everything was checked that can be without work."""
    asked = request(source, None, options, calibration=None, evaluation=None)
    targets = catalogue.select(options.target)
    for refuse, chosen in (
        (check, [t for t in targets if not t.task]),
        (language.check, [t for t in targets if t.task]),
    ):
        if chosen:
            refuse(replace(asked, targets=tuple(chosen)))
    return replace(asked, targets=targets)


def bound(
    inputs: Iterable[Mapping[str, Array] | Array], names: Sequence[str]
) -> Iterator[Mapping[str, Array]]:
    """Each of ``inputs`` by name; a model with one input takes bare arrays too.

    Raises :class:`DataError` for names that are not the model's.
    """
    for item in inputs:
        named: Mapping[str, Array] = item if isinstance(item, Mapping) else {names[0]: item}
        if set(named) != set(names) or not all(hasattr(array, "dtype") for array in named.values()):
            kind = f"named {', '.join(map(str, item))}" if isinstance(item, Mapping) else type(item).__name__
            raise DataError(
                f"inputs are {kind}; the model takes {', '.join(names)}",
                hint="give each as a mapping of names to arrays, batch axis included",
            )
        yield named


def calibrated(asked: Request, context: BuildContext) -> CalibrationResult:
    """Load, export, optimize, and run the calibration samples once."""
    from edgekit.quantize.calibrate.calibration import Calibration

    prepared = build.prepare(asked, context)
    if prepared.data.calibration is None:
        raise UsageError("there is nothing to calibrate with", hint="pass calibration=samples")
    model, _ = stages.in_float32(context, prepared.graph.model)
    result = stages.calibrate(context, model, prepared.data.calibration)
    return CalibrationResult(
        calibration=Calibration.load(result.file),
        file=result.file,
        fingerprint=result.samples.fingerprint,
        samples=len(result.samples),
        findings=stages.diagnose(context, result, prepared.data.evaluation, prepared.graph.exported),
    )
