"""``edgekit verify``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePath

import click

import edgekit
from edgekit.artifact.limits import parse
from edgekit.artifact.manifest import FILE_NAME
from edgekit.artifact.proof import apart, inputs
from edgekit.artifact.repeating import remedies
from edgekit.cli._contained import contain
from edgekit.cli._options import Grouped, declared, json_flag
from edgekit.cli._output import end_with, harmless, number, print_json, progress, say, table
from edgekit.core.config import Options
from edgekit.core.contained import step
from edgekit.core.declared import parse_settings
from edgekit.devices import catalogue
from edgekit.devices.catalogue import LOCAL
from edgekit.errors import EdgekitError, GateFailedError, TimeLimitError, UsageError
from edgekit.package import BundleReport, holds_bundle, is_bundle, native, printed, verify_bundle
from edgekit.types import Gate, Verdict

_MANY = 1000
Row = tuple[str, str, str, str, str]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one artifact or bundle gave: rows for people, a document for machines, and what failed."""

    path: Path
    rows: list[Row]
    document: dict[str, object]
    failed: tuple[str, ...]
    hint: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What artifacts are verified with beside their golden vectors."""

    options: Options
    evaluation: str | None
    source: str | None
    strict: bool


@click.command(cls=Grouped)
@click.argument("artifacts", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--device", default="local", show_default=True, metavar="NAME", help="Where to run them.")
@click.option(
    "--public-key", type=click.Path(path_type=Path), help="Key (PEM) that a bundle must be signed with."
)
@click.option(
    "--limit",
    "limits",
    multiple=True,
    metavar="NAME=VALUE",
    help="A gate's limit in place of the target's: snr, slices, samples, agreement, integers, boxes, masks, "
    "relative-error, "
    "size, latency, memory; with --eval also metric-drop and placement.",
)
@click.option(
    "--eval",
    "evaluation",
    metavar="DATA",
    default="",
    help="Run these samples as well: placement, and the metric of labelled ones.",
)
@click.option("--source", metavar="SOURCE", default="", help="Compare with this source on --eval's samples.")
@click.option(
    "--metric",
    metavar="FILE.py:FUNCTION",
    default="",
    help="Measured on --eval's labels in place of the task's own.",
)
@click.option(
    "--trust",
    is_flag=True,
    help="Execute code that files of --source or --eval carry (pickles), and load engines of others.",
)
@click.option("--strict", is_flag=True, help="Refuse what is unproven, here or when it was built.")
@json_flag
@declared("verify")
def verify(
    artifacts: tuple[Path, ...],
    options: Options,
    device: str,
    public_key: Path | None,
    limits: tuple[str, ...],
    strict: bool,
    evaluation: str,
    source: str,
    metric: str,
    trust: bool,
    as_json: bool,
) -> None:
    """Run each of ARTIFACTS (or packages) again on its real runtime, here or on a device, and check its gates.

    Uses the golden vectors inside: real inputs with the source's outputs. Nothing else is needed, neither
    the source nor its data. An artifact that could not be run where it was built takes its verdict from
    here. With --eval the samples are run as well; with --source the outputs are compared as a build does.
    Of an Android archive (.aar, .apk, .aab) the native libraries are looked at: whether Google Play takes them.
    """
    artifacts = tuple(inside for path in artifacts for inside in printed(path))
    # With --eval code of the user's own runs, too: it takes what it takes.
    names = tuple(map(str, artifacts))
    contain(", ".join(names), options, *(() if evaluation else artifacts), parts=names)
    where = catalogue.device(device)
    chosen = parse_settings(limits, where="--limit") if limits else {}
    parse(chosen)
    asked = Asked(
        options=Options(limit=chosen, metric=metric, trust=trust),
        evaluation=evaluation or None,
        source=source or None,
        strict=strict,
    )
    if any(is_bundle(path) for path in artifacts):
        _refuse_for_bundles(asked)
    outcomes, errors = _outcomes(artifacts, where, asked, public_key)
    errors += _refusals(outcomes)
    if as_json:
        print_json({"artifacts": [o.document for o in outcomes], "errors": [e.to_json() for e in errors]})
    elif outcomes:
        table(
            "", ("artifact", "check", "value", "limit", "verdict"), [row for o in outcomes for row in o.rows]
        )
    for outcome in outcomes:
        for note in outcome.notes:
            say(harmless(f"{outcome.path}: {note}"), err=True)
    end_with(errors)


def _refuse_for_bundles(asked: Asked) -> None:
    if asked.options.limit:
        raise UsageError(
            "a bundle has its own tolerance", hint="--limit is for artifacts: leave it out, or the bundle"
        )
    if asked.evaluation or asked.source or asked.options.metric:
        raise UsageError(
            "a bundle is verified with what is in it",
            hint="--eval, --source and --metric are for artifacts: leave them out, or the bundle",
        )


def _outcomes(
    artifacts: Sequence[Path], device: edgekit.Device, asked: Asked, public_key: Path | None
) -> tuple[list[Outcome], list[EdgekitError]]:
    """What each of the arguments gave; one that cannot be read or run does not keep the others from it."""
    outcomes: list[Outcome] = []
    errors: list[EdgekitError] = []
    # What runs the user's own code takes the time that it takes.
    quick = device.name == LOCAL.name and not asked.evaluation
    with progress() as shown:
        for path in artifacts:
            try:
                with shown.task(f"run {path.name}"), step(f"verify {path}", quick=quick):
                    outcomes.append(_outcome(path, device, asked, public_key))
            except (UsageError, TimeLimitError):  # of the command, not of one artifact
                raise
            except EdgekitError as error:
                errors.append(error)
    return outcomes, errors


def _outcome(path: Path, device: edgekit.Device, asked: Asked, public_key: Path | None) -> Outcome:
    """What one of the arguments gave; every error says of which it is."""
    try:
        if native.is_android(path):
            return _android(path)
        if is_bundle(path):
            return _bundle(path, device, public_key)
        _refuse_around(path)
        return _artifact(path, device, asked, public_key)
    except EdgekitError as error:
        raise error.about(str(path))  # noqa: B904 - the same error


def _android(path: Path) -> Outcome:
    """The native libraries of an archive: whether Google Play takes them."""
    found = native.look(path)
    refused = tuple(f for f in found.findings if f.refuses)
    rows: list[Row] = [
        (path.name, PurePath(lib.file).name, f"{lib.alignment:,}", f"{native.PAGE:,}", _judged(lib))
        for lib in found.libraries
    ]
    return Outcome(
        path=path,
        rows=rows or [(path.name, "(native libraries)", "none", "", str(Verdict.PASS))],
        document={"artifact": str(path), "status": "failed" if refused else "passed", "native": found},
        failed=tuple(f"{f.kind} of {f.file}" for f in refused),
        hint="take a newer version of what brings it, or build it with -Wl,-z,max-page-size=16384",
        notes=tuple(f.message for f in found.findings),
    )


def _judged(library: native.Library) -> str:
    if library.bits == 32:
        return f"{Verdict.PASS} (32 bits)"
    return str(Verdict.PASS if library.aligned else Verdict.FAIL)


def _refuse_around(path: Path) -> None:
    """A folder that is none itself, and holds some."""
    if not path.is_dir() or (path / FILE_NAME).is_file():
        return
    inside = sorted(p for p in islice(path.iterdir(), _MANY) if (p / FILE_NAME).is_file() or holds_bundle(p))
    if inside:
        raise UsageError(
            f"{path} is a folder of artifacts or bundles, and none itself",
            hint=f"name them: edgekit verify {' '.join(map(str, inside[:3]))}",
        )


def _refusals(outcomes: Sequence[Outcome]) -> list[GateFailedError]:
    return [
        GateFailedError(
            f"{o.path} did not pass: {', '.join(o.failed)}",
            hint=o.hint,
            gates=list(o.failed),
        )
        for o in outcomes
        if o.failed
    ]


def _artifact(path: Path, device: edgekit.Device, asked: Asked, public_key: Path | None) -> Outcome:
    if public_key is not None:
        raise UsageError(
            f"{path} is an artifact: it cannot be signed, and --public-key says nothing of it",
            hint="give a bundle (edgekit package), or leave --public-key out",
        )
    artifact = edgekit.open(path)
    result = artifact.verify(
        device=device, evaluation=asked.evaluation, source=asked.source, options=asked.options
    )
    strict = asked.strict
    refused = (Verdict.FAIL, Verdict.NOT_RUN, *((Verdict.UNPROVEN,) if strict else ()))
    failed = [g.name for g in result.gates if g.verdict in refused]
    failed += [f"{g.name} (failed when built)" for g in result.failed_before]
    failed += [f"{name} (not repeated, and not built here)" for name in result.claimed if strict]
    ways = remedies(
        result.claimed,
        artifact.manifest,
        evaluation=asked.evaluation is not None,
        source=asked.source is not None,
    )
    said = [
        f"{', '.join(names)}: claimed by the manifest, not repeated here: {w}" for w, names in ways.items()
    ]
    notes = (*result.notes, *said, *_reasons((*result.gates, *result.failed_before), failed))
    return Outcome(
        path=path,
        rows=_rows(artifact.target, result),
        document={"artifact": str(path), "status": result.status, "replay": result, "notes": notes},
        failed=tuple(failed),
        hint="; ".join(_causes(result, tuple(ways) if strict else (), asked)),
        notes=notes,
    )


def _reasons(gates: Sequence[Gate], failed: Sequence[str]) -> Iterator[str]:
    """What each gate says that refuses, or that leaves the artifact unproven."""
    names = {name.partition(" (")[0] for name in failed}
    for gate in gates:
        refuses = gate.name in names and gate.verdict is not Verdict.PASS
        if gate.message and (refuses or gate.verdict is Verdict.UNPROVEN):
            yield f"{gate.name}: {gate.message}"


def _causes(result: edgekit.Replay, ways: Sequence[str], asked: Asked) -> Iterator[str]:
    """What to do about each kind of what refuses the artifact, the gravest first."""
    chosen = {_GATES.get(name, name) for name in asked.options.limit}
    failed = {g.name for g in result.gates if g.verdict is Verdict.FAIL}
    if failed - chosen:
        yield _CHANGED
    if own := sorted(failed & chosen):
        yield f"{', '.join(own)}: it does not keep what --limit asks for: loosen that, or build it otherwise"
    if any(g.verdict is Verdict.NOT_RUN for g in result.gates):
        yield "what was not run here runs where its runtime and hardware are (--device NAME)"
    if result.failed_before:
        yield "it failed when it was built: build it again"
    if asked.strict:
        yield from ways
        if {g.name for g in result.gates if g.verdict is Verdict.UNPROVEN}:
            yield "what each unproven gate says above would prove it; without --strict it passes as unproven"


_CHANGED = "if nothing was changed, compare runtime versions and processor with those in the manifest"
_GATES = {"agreement": "top1-agreement"}
"""The gates of limits that have another name."""


def _figures(gate: Gate) -> tuple[str, str]:
    """Value and limit, with digits enough to tell them apart."""
    if gate.value is None or gate.limit is None:
        return number(gate.value), number(gate.limit)
    return apart(gate.value, gate.limit)


def _rows(target: str, result: edgekit.Replay) -> list[Row]:
    rows = [(target, g.name, *_figures(g), str(g.verdict)) for g in result.gates]
    rows += [(target, g.name, *_figures(g), "failed when built") for g in result.failed_before]
    left = [n for n in result.not_repeated if n not in result.claimed]
    if left:
        rows.append((target, "(not repeated)", ", ".join(left), "", "needs the source's data"))
    if result.claimed:
        rows.append((target, "(not repeated)", ", ".join(result.claimed), "", "claimed: not built here"))
    if result.parity is None:
        return [*rows, (target, "(all)", "", "", str(result.status))]
    recorded = f"{result.recorded.snr_db:.1f} dB when built" if result.recorded else "first run"
    where = inputs(result.parity)
    if (beside := result.evaluation) is not None:
        rows.append((target, "(SNR on --eval)", f"{beside.snr_db:.1f}", "", f"{beside.samples} samples"))
    return [
        *rows,
        (target, "(SNR now)", f"{result.parity.snr_db:.1f}", recorded, where),
        (target, "(all)", "", "", str(result.status)),
    ]


def _bundle_causes(report: BundleReport) -> Iterator[str]:
    if any(c.verdict is not Verdict.PASS for c in report.cases):
        yield _CHANGED
    if report.refused_before:
        yield "it did not pass when it was built: package an artifact that does"


def _bundle(path: Path, device: edgekit.Device, public_key: Path | None) -> Outcome:
    report = verify_bundle(path, device=device, public_key=public_key)
    return Outcome(
        path=path,
        rows=[(path.name, c.name, f"{c.error:.4g}", f"{c.limit:.4g}", str(c.verdict)) for c in report.cases],
        document={
            "artifact": str(path),
            "status": "passed" if report.passed else "failed",
            "bundle": report,
        },
        failed=(
            *(c.name for c in report.cases if c.verdict is not Verdict.PASS),
            *(f"{g.name} ({g.verdict} when built)" for g in report.refused_before),
        ),
        hint="; ".join(_bundle_causes(report)),
        notes=report.notes,
    )
