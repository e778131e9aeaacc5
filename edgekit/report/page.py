"""The page: what the template shows of each artifact, as plain texts and numbers."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

from edgekit.artifact import proof
from edgekit.artifact.manifest import BUILT, Manifest, Status
from edgekit.artifact.measure import SOAK
from edgekit.artifact.summary import as_asked, messages, printable, size, standing
from edgekit.core.versions import EDGEKIT
from edgekit.errors import MissingExtraError
from edgekit.report import figures
from edgekit.report.collect import LONGEST_MS, Entry, Skipped
from edgekit.report.figures import Point, Spread
from edgekit.types import Json, Measurement, Verdict

if TYPE_CHECKING:
    from jinja2 import Environment

_GOOD, _OPEN, _BAD, _UNKNOWN, _SHOWN = (
    ("good", "✔"),
    ("open", "?"),
    ("bad", "✘"),
    ("unknown", "–"),
    ("shown", "·"),
)
_MARKS: Mapping[str, tuple[str, str]] = {
    Status.PASSED: _GOOD,
    Status.UNPROVEN: _OPEN,
    Status.FAILED: _BAD,
    Status.NOT_RUN: _UNKNOWN,
    Verdict.PASS: _GOOD,
    Verdict.FAIL: _BAD,
    Verdict.SHOWN: _SHOWN,
}
"""The class of the page's style and the sign of each verdict."""
_NOTHING = "–"
_COLUMNS = (
    ("size", "size"),
    ("metric", "metric"),
    ("before", "of the source"),
    ("agreement", "agreement"),
    ("snr", "SNR, dB"),
    ("placement", "placement"),
    ("latency", "median, ms"),
    ("memory", "peak memory"),
    ("device", "on"),
)
"""The figures of the table of all, with their headings; those that nothing has are left out."""
_MOST_LAYERS = 400
_MOST_DRAWN = 30
"""Each figure takes a tenth of a second."""
_MOST_BARS = 12
_MOST_DETAILED = 200
"""Artifacts with a section of their own: some 20 KB each."""


@dataclass(frozen=True, kw_only=True)
class CellRow:
    """A row of a sweep's table: its texts, whether an artifact came of it that passed, and whether one came at all (its
    first text is then what the artifact is called)."""

    cells: tuple[str, ...]
    good: bool
    artifact: bool


@dataclass(frozen=True, kw_only=True)
class CellTable:
    """What a sweep tried, those without an artifact too."""

    columns: tuple[str, ...] = ()
    rows: tuple[CellRow, ...] = ()


def environment() -> Environment:
    """Jinja's, for the templates here: texts are escaped and control characters shown. Raises
    :class:`MissingExtraError`."""
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError as error:
        raise MissingExtraError(
            "Jinja2, which writes the report", requirement="edgekit-deploy[report]"
        ) from error
    return Environment(
        loader=PackageLoader("edgekit.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: printable(value) if type(value) is str else value,
    )


def page(
    entries: Sequence[Entry],
    skipped: Sequence[Skipped],
    *,
    title: str = "",
    tried: CellTable = CellTable(),
) -> str:
    """The whole page as HTML; ``tried`` is shown above all.

    Raises :class:`MissingExtraError` where matplotlib or Jinja2 is not installed."""
    rows = [_row(e, f"a{i}") for i, e in enumerate(entries)]
    anchors = {e.name: f"a{i}" for i, e in enumerate(entries[:_MOST_DETAILED])}
    sources = dict.fromkeys(e.artifact.manifest.source.text for e in entries)
    score = _score_name(entries)
    return (
        environment()
        .get_template("page.html")
        .render(
            several=len(sources) > 1,
            title=title or ", ".join(sources) or "nothing",
            edgekit=EDGEKIT,
            counts=_counts(entries),
            rows=rows,
            columns=[(k, h) for k, h in _COLUMNS if any(row[k] != _NOTHING for row in rows)],
            details=[
                _detail(e, f"a{i}", drawn=len(entries) <= _MOST_DRAWN)
                for i, e in enumerate(entries[:_MOST_DETAILED])
            ],
            left_out=len(entries[_MOST_DETAILED:]),
            tried_columns=tried.columns,
            tried=[(_GOOD if r.good else _BAD, anchors.get(r.cells[0], ""), r.cells) for r in tried.rows],
            skipped=[(str(s.directory), s.why) for s in skipped],
            pareto=figures.pareto([_point(e) for e in entries], score),
            latencies=figures.latencies(_spreads(entries)),
        )
    )


def _counts(entries: Sequence[Entry]) -> list[tuple[str, str, str, int]]:
    found = Counter(e.artifact.manifest.status for e in entries)
    return [(*_MARKS[s], str(s), found[s]) for s in Status if found[s]]


def _score_name(entries: Sequence[Entry]) -> str:
    names = {p.metric_name for e in entries if (p := e.artifact.manifest.parity) and p.metric is not None}
    return names.pop() if len(names) == 1 else "SNR, dB"


def _point(entry: Entry) -> Point:
    manifest = entry.artifact.manifest
    parity, timed = manifest.parity, _last(manifest)
    score = None
    if parity is not None:
        score = parity.metric if parity.metric is not None and parity.higher_is_better else parity.snr_db
    return Point(
        name=entry.name,
        size=manifest.size,
        latency=timed.p50_ms if timed and 0 < timed.p50_ms < LONGEST_MS else None,
        score=score,
        good=manifest.status in BUILT and not entry.changed,
    )


def _spreads(entries: Sequence[Entry]) -> list[Spread]:
    return [
        Spread(name=f"{e.name}, {device}", times=list(chain.from_iterable(rows)))
        for e in entries
        for device, rows in e.times.items()
    ]


def _last(manifest: Manifest) -> Measurement | None:
    return manifest.measurements[-1] if manifest.measurements else None


def _row(entry: Entry, anchor: str) -> dict[str, object]:
    """A line of the table of all."""
    manifest = entry.artifact.manifest
    parity, timed = manifest.parity, _last(manifest)
    metric = before = _NOTHING
    if parity is not None and parity.metric is not None:
        metric = f"{parity.metric:.4f}"
        before = _NOTHING if parity.reference_metric is None else f"{parity.reference_metric:.4f}"
    return {
        "anchor": anchor,
        "mark": _BAD if entry.changed else _MARKS[manifest.status],
        "name": entry.name,
        "source": manifest.source.text.rpartition("/")[2],
        "verdict": "files changed" if entry.changed else standing(manifest).partition(":")[0],
        "precision": str(manifest.target.precision),
        "size": size(manifest.size),
        "metric": metric,
        "before": before,
        "agreement": proof.percent(parity.top1_agreement)
        if parity and parity.top1_agreement is not None
        else _NOTHING,
        "snr": f"{parity.snr_db:.1f}" if parity else _NOTHING,
        "placement": as_asked(manifest),
        "latency": f"{timed.p50_ms:.3g}" if timed else _NOTHING,
        "device": timed.device if timed else _NOTHING,
        "memory": size(timed.peak_memory) if timed and timed.peak_memory else _NOTHING,
    }


def _detail(entry: Entry, anchor: str, *, drawn: bool) -> dict[str, object]:
    """Everything that is known about one artifact; ``drawn``: with a figure of its own."""
    manifest = entry.artifact.manifest
    return {
        "anchor": anchor,
        "name": entry.name,
        "mark": _BAD if entry.changed else _MARKS[manifest.status],
        "verdict": printable(standing(manifest)),
        "changed": entry.changed,
        "why": manifest.target.why,
        "folder": str(entry.artifact.directory),
        "data": _data(manifest),
        "gates": [
            (*_MARKS[g.verdict], g.name, _number(g.value), _number(g.limit), message)
            for g, message in zip(manifest.gates, messages(manifest.gates), strict=True)
        ],
        "outputs": _outputs(manifest),
        "measurements": [_measurement(m) for m in manifest.measurements],
        "placement": _placement(manifest),
        "calibration": _calibration(manifest),
        "rollout": _rollout(manifest),
        "layers": _layers(manifest),
        "bars": _bars(manifest, anchor) if drawn else "",
        "steps": [
            (s.name, f"{s.seconds:.3g}", s.output_sha256[:12], "; ".join(s.notes)) for s in manifest.steps
        ],
        "files": [(f.name, size(f.size), f.sha256) for f in manifest.files],
        "versions": sorted({k: v for s in manifest.steps for k, v in s.versions.items()}.items()),
        "runtime_versions": sorted(manifest.runtime_versions.items()),
        "machine": sorted((k, str(v)) for k, v in manifest.machine.items()),
        "notes": manifest.notes,
        "commands": _commands(entry),
    }


def _data(manifest: Manifest) -> str:
    """What parity was measured on."""
    parity = manifest.parity
    if parity is None:
        return "not run: nothing was measured"
    text = f"{parity.samples} {parity.data or 'unknown'} samples"
    return f"{text}, {parity.labelled} with labels" if parity.labelled else text


def _number(value: float | None) -> str:
    return _NOTHING if value is None else f"{value:.4g}"


def _outputs(manifest: Manifest) -> list[tuple[str, str, str, str, str]]:
    """By output: SNR, largest error, the worst slice, agreement."""
    parity = manifest.parity
    return [
        (
            name,
            _number(f.get("snr_db")),
            _number(f.get("max_abs")),
            _number(f.get("explained")),
            _number(f.get("agreement")),
        )
        for name, f in (parity.per_output if parity else {}).items()
    ]


def _measurement(m: Measurement) -> dict[str, object]:
    interval = m.facts.get("p50_interval_ms")
    low, high = interval if isinstance(interval, list | tuple) and len(interval) == 2 else (None, None)
    device = m.facts.get("device")
    processor = str(device.get("processor", "")) if isinstance(device, Mapping) else ""
    return {
        "device": m.device,
        "processor": processor,
        "threads": m.threads,
        "times": [
            ("import", f"{m.import_ms:.3g}"),
            ("load", f"{m.load_ms:.3g}"),
            ("first call", f"{m.first_ms:.3g}"),
            ("median", f"{m.p50_ms:.4g}"),
            ("90 % interval of the median", f"{low:.4g} to {high:.4g}" if _numbers(low, high) else _NOTHING),
            ("p90", f"{m.p90_ms:.4g}"),
            ("p99", _number(m.p99_ms)),
            ("MAD", f"{m.mad_ms:.3g}"),
        ],
        "memory": [
            ("peak", size(m.peak_memory) if m.peak_memory else _NOTHING),
            ("of the model", size(m.model_memory) if m.model_memory else _NOTHING),
        ],
        "validity": m.validity,
        "reasons": m.reasons,
        "soak": _soak(m),
    }


def _soak(m: Measurement) -> dict[str, object] | None:
    """The last long run on that device: its gates, and how long it was."""
    found = m.facts.get(SOAK)
    if not isinstance(found, Mapping):
        return None
    gates = found.get("gates")
    rows = [
        (str(g.get("name", "")), str(g.get("verdict", "")), str(g.get("message", "")))
        for g in (gates if isinstance(gates, Sequence) and not isinstance(gates, str) else ())
        if isinstance(g, Mapping)
    ]
    calls, seconds = found.get("calls"), found.get("seconds")
    length = f"{calls:,} calls in {seconds:,.0f} s" if _numbers(calls, seconds) else ""
    return {"length": length, "gates": rows}


def _numbers(*values: object) -> bool:
    return all(isinstance(v, int | float) for v in values)


def _placement(manifest: Manifest) -> dict[str, object] | None:
    placement = manifest.placement
    if placement is None:
        return None
    return {
        "share": proof.percent(placement.share) if placement.share is not None else "not told by the runtime",
        "precision": placement.precision,
        "operators": placement.operators,
        "kernels": sorted(placement.kernels.items(), key=lambda item: (-item[1], item[0])),
        "fallbacks": [
            (f.op, str(f.count), proof.percent(f.share), f.reason, ", ".join(f.nodes[:5]))
            for f in placement.fallbacks
        ],
        "notes": placement.notes,
    }


def _calibration(manifest: Manifest) -> dict[str, object] | None:
    record = manifest.calibration
    if record is None:
        return None
    return {
        "text": f"{record.samples} samples, method {record.method}, fingerprint {record.fingerprint[:16]}",
        "random": not record.calibrated,
        "findings": record.findings,
    }


def _rollout(manifest: Manifest) -> list[tuple[str, str]]:
    found = manifest.details.get("rollout")
    return [(str(k), _shown(v)) for k, v in found.items()] if isinstance(found, Mapping) else []


def _shown(value: Json) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k} from {v}" for k, v in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _nodes(manifest: Manifest) -> list[Mapping[str, Json]]:
    report = manifest.details.get("quantization")
    nodes = report.get("nodes") if isinstance(report, Mapping) else None
    return [n for n in nodes if isinstance(n, Mapping)] if isinstance(nodes, Sequence) else []


def _layers(manifest: Manifest) -> list[tuple[str, str, str, str, str]]:
    """By operator of the graph: its module, its products, and in what it is computed or why not in integers."""
    return [
        (
            str(n.get("node", "")),
            str(n.get("op", "")),
            str(n.get("module_path", "")),
            f"{int(macs):,}" if isinstance(macs := n.get("macs"), int | float) and macs else _NOTHING,
            str(n.get("activation") or "integers") if n.get("quantized") else str(n.get("reason") or "float"),
        )
        for n in _nodes(manifest)[:_MOST_LAYERS]
    ]


def _bars(manifest: Manifest, anchor: str) -> str:
    """The operators with the most products that are not computed in integers."""
    rows = [
        (str(n.get("module_path") or n.get("node", "")), float(macs) / 1e6)
        for n in _nodes(manifest)
        if not n.get("quantized") and isinstance(macs := n.get("macs"), int | float) and macs > 0
    ]
    largest = sorted(rows, key=lambda row: -row[1])[:_MOST_BARS]
    return figures.bars(largest, "million multiply-accumulates in float", f"What stays in float {anchor}")


def _commands(entry: Entry) -> list[tuple[str, str]]:
    """What repeats each number."""
    manifest, folder = entry.artifact.manifest, shlex.quote(str(entry.artifact.directory))
    options = [f"--set {shlex.quote(f'{k}={v}')}" for k, v in manifest.settings.items()]
    options += [f"--bind {shlex.quote(f'{k}={v}')}" for k, v in manifest.source.bound.items()]
    options += ["--calib DATA"] if manifest.calibration is not None else []
    source = shlex.quote(manifest.source.text)
    rows = [
        ("gates on the golden vectors", f"edgekit verify {folder}"),
        ("gates on data", f"edgekit verify {folder} --source {source} --eval DATA"),
    ]
    for m in manifest.measurements:
        device = f" --device {shlex.quote(m.device)}" if m.device != "local" else ""
        rows.append((f"times on {m.device}", f"edgekit bench {folder} --threads {m.threads}{device}"))
    built = f"edgekit build {source} --target {shlex.quote(manifest.target.name)}"
    return [*rows, ("the artifact itself", " ".join([built, *options]))]
