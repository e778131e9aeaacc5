"""Do the gates see it? Faults of many kinds put into artifacts of small networks, on three INT8 runtimes.

    python tools/fault_catalogue.py run [PATTERN…] [--targets …] [--out FILE]
    python tools/fault_catalogue.py table FILE      # the table of docs/gates.md

Each fault changes what is lowered (graph, Q/DQ or calibration samples), never the source that the artifact is compared
with; quantization, lowering, the run on the real runtime and the gates are those of ``edgekit build``, with default
limits and without labels. A fault counts where it did harm: the network's own score against the truth, which no gate
sees, fell by more than ten points; smaller losses are within the default limits, and what labels and ``--max-drop``
are for. The networks without faults have to pass on all float and INT8 targets.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from faults.kinds import Fault, Seen, faults
from faults.networks import Network, networks

from edgekit.core import targets
from edgekit.core.config import Options
from edgekit.devices.execute import run_artifact
from edgekit.errors import EdgekitError
from edgekit.graph import io
from edgekit.pipeline import api, build, stages
from edgekit.pipeline.build import Request
from edgekit.pipeline.candidates import Candidate, Prepared, candidate
from edgekit.pipeline.lower import Lowering, calibration_for, shaped
from edgekit.pipeline.verify import Subject, verify
from edgekit.quantize.options import QuantizeOptions
from edgekit.types import Target, Verdict

INT8 = ("ort-int8", "openvino-int8", "tflite-int8")
FLOAT = ("ort-fp32", "openvino-fp32", "tflite-fp32", "ort-fp16", "openvino-fp16")
HARM = 0.1
NETWORKS_A_FAULT = 4
DOCS = Path(__file__).resolve().parent.parent / "docs" / "gates.md"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One artifact: what was wrong with it, how much of the score it cost, and what the gates said."""

    network: str
    kind: str
    fault: str
    target: str
    lost: float
    caught: tuple[str, ...]
    note: str = ""


def main() -> int:
    """Parse the command line and run one of the commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run")
    run.add_argument("patterns", nargs="*", default=["*"])
    run.add_argument("--targets", default=",".join(INT8))
    run.add_argument("--out", type=Path, default=Path("build/faults.json"))
    table = commands.add_parser("table")
    table.add_argument("file", type=Path)
    options = parser.parse_args()
    if options.command == "table":
        rows = [
            Row(**{**row, "caught": tuple(row["caught"])}) for row in json.loads(options.file.read_text())
        ]
        _publish(_table(rows))
        return 0
    rows = []
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for row in _rows(options.patterns, options.targets.split(",")):
        rows.append(row)
        print(
            f"{row.network:18} {row.kind:20} {row.fault:46} {row.target:14} {row.lost:6.3f}",
            " ".join(row.caught) or "-",
            row.note,
            flush=True,
        )
        options.out.write_text(json.dumps([asdict(r) for r in rows], indent=1))
    print(_summary(rows))
    return 0


def _rows(patterns: Sequence[str], names: Sequence[str]) -> Iterator[Row]:
    used: dict[str, int] = {}
    for network in networks():
        if not any(fnmatch.fnmatch(network.name, p) for p in patterns):
            continue
        with tempfile.TemporaryDirectory() as folder:
            yield from _Bench(network, Path(folder), names).rows(used)


class _Bench:
    """One network, prepared as a build prepares it, and its artifacts with and without faults."""

    def __init__(self, network: Network, folder: Path, names: Sequence[str]) -> None:
        self.network, self.folder = network, folder
        self.targets = [targets.find(name) for name in names]
        self.options = replace(
            Options.load({"out": folder / "out", "target": ",".join(names)}), speed_gate=False
        )
        self.context = api.context(self.options, None)
        self.prepared = build.prepare(self._request(network.calibration), self.context)
        self.outputs = self._run(self.prepared.graph.model.path)
        stacked = {n: np.concatenate([o[n] for o in self.outputs]) for n in self.outputs[0]}
        self.seen = Seen(inputs=network.evaluation, outputs=stacked, image=network.image)
        self.whole = network.score(self.outputs)

    def rows(self, used: dict[str, int]) -> Iterator[Row]:
        """The network as it is, then with each fault that it can have."""
        for name in (*FLOAT, *(t.name for t in self.targets)):
            target = targets.find(name)
            caught, note = self._gated(target, lambda t=target: self._made(self.prepared, t))
            yield Row(
                network=self.network.name,
                kind="none",
                fault="",
                target=name,
                lost=0.0,
                caught=caught,
                note=note,
            )
        for fault in faults():
            if used.get(fault.kind + fault.name, 0) >= NETWORKS_A_FAULT:
                continue
            applied = False
            for target in self.targets:
                row = self._faulty(fault, target)
                applied |= row is not None
                if row is not None:
                    yield row
            used[fault.kind + fault.name] = used.get(fault.kind + fault.name, 0) + applied

    def _request(self, calibration: np.ndarray) -> Request:
        def samples(rows: np.ndarray) -> list[np.ndarray]:
            return [row[None] for row in rows]

        asked = api.request(
            self.network.module, None, self.options,
            calibration=samples(calibration), evaluation=samples(self.network.evaluation),
        )  # fmt: skip
        # As `edgekit build -t all` would: what a float16 row keeps in float32 is measured only where one is asked for.
        return replace(asked, targets=(*(targets.find(name) for name in FLOAT), *self.targets))

    def _faulty(self, fault: Fault, target: Target) -> Row | None:
        made: list[Candidate] = []
        prepared = self.prepared
        if fault.graph is not None:
            model = self._edited(prepared.graph.model.path, fault.graph)
            if model is None:
                return None
            prepared = replace(prepared, graph=replace(prepared.graph, model=io.describe(model)))
        calibration = None
        if fault.calibration is not None:
            calibration = fault.calibration(self.network.calibration, self.seen)
            if calibration is None:
                return None

        def build_it() -> Candidate:
            chosen = prepared
            if calibration is not None:
                chosen = build.prepare(self._request(calibration), self.context)
            made.append(self._made(chosen, target, fault))
            return made[0]

        try:
            caught, note = self._gated(target, build_it)
        except _NotApplicableError:
            return None
        lost = self.whole - self._score(made[0]) if made else self.whole
        return Row(
            network=self.network.name,
            kind=fault.kind,
            fault=fault.name,
            target=target.name,
            lost=round(lost, 4),
            caught=caught,
            note=note,
        )

    def _gated(self, target: Target, make: object) -> tuple[tuple[str, ...], str]:
        """Which gates failed; a typed error of the build is one, too."""
        try:
            made = make()  # type: ignore[operator]
        except EdgekitError as error:
            return (type(error).__name__,), error.message[:120]
        verdicts = build.judge(target, made, self.options, self.prepared)
        return tuple(g.name for g in verdicts if g.verdict in (Verdict.FAIL, Verdict.NOT_RUN)), ""

    def _made(self, prepared: Prepared, target: Target, fault: Fault | None = None) -> Candidate:
        quantization = QuantizeOptions.of(self.options, target)
        if fault is None or fault.quantized is None:
            return candidate(self.context, prepared, target, quantization)
        return self._misquantized(prepared, target, quantization, fault)

    def _misquantized(
        self, prepared: Prepared, target: Target, quantization: QuantizeOptions, fault: Fault
    ) -> Candidate:
        context, graph, data = self.context, prepared.graph, prepared.data
        calibrated = calibration_for(context, graph, target, data.calibration)
        model, step, report = stages.quantize(context, graph.model, target, calibrated, quantization)
        assert fault.quantized is not None
        edited = self._edited(model.path, fault.quantized)
        if edited is None:
            raise _NotApplicableError
        shaped_model, _ = shaped(context, graph, target, io.describe(edited))
        files = stages.lower(context, shaped_model, target, {})
        subject = Subject(target=target, model=shaped_model, files=files)
        verified = verify(context, subject, graph.source, graph.exported, data.verification)
        return Candidate(lowering=Lowering(subject=subject, steps=(step,), report=report), verified=verified)

    def _edited(self, path: Path, edit: object) -> Path | None:
        proto = onnx.load(str(path))
        if not edit(proto.graph, self.seen):  # type: ignore[operator]
            return None
        out = Path(tempfile.mkdtemp(dir=self.folder)) / "model.onnx"
        onnx.save(proto, str(out))
        return out

    def _run(self, path: Path) -> list[dict[str, np.ndarray]]:
        session = io.session(path)
        name = session.get_inputs()[0].name
        outputs = [o.name for o in session.get_outputs()]
        return [
            dict(zip(outputs, session.run(None, {name: row[None]}), strict=True))
            for row in self.network.evaluation
        ]

    def _score(self, made: Candidate) -> float:
        """The artifact's own, on its runtime."""
        name = self.prepared.graph.model.inputs[0].name
        with run_artifact(
            made.lowering.subject.runnable, ({name: row[None]} for row in self.network.evaluation)
        ) as result:
            value = self.network.score([{n: np.nan_to_num(a) for n, a in o.items()} for o in result.outputs])
        return value if np.isfinite(value) else 0.0


class _NotApplicableError(Exception):
    """The network has nothing that the fault could spoil."""


def _summary(rows: Sequence[Row]) -> str:
    honest = [r for r in rows if r.kind == "none"]
    harmful = [r for r in rows if r.kind != "none" and r.lost > HARM]
    seen = sum(bool(r.caught) for r in harmful)
    kinds = len({r.kind for r in harmful})
    different = len({(r.network, r.kind, r.fault) for r in harmful})
    refused = sum(bool(r.caught) for r in honest)
    return (
        f"{different} faults of {kinds} kinds, {len(harmful)} artifacts that lost more than {100 * HARM:.0f} points: "
        f"{seen} caught ({100 * seen / max(len(harmful), 1):.1f} %); "
        f"{refused} of {len(honest)} honest artifacts refused"
    )


def _table(rows: Sequence[Row]) -> str:
    harmful = [r for r in rows if r.kind != "none" and r.lost > HARM]
    lines = [
        _summary(rows) + ".",
        "",
        "| kind | artifacts | caught | by (most often) | not caught |",
        "|---|---|---|---|---|",
    ]
    for kind in dict.fromkeys(r.kind for r in harmful):
        of = [r for r in harmful if r.kind == kind]
        gates = [g for r in of for g in r.caught]
        often = sorted(set(gates), key=gates.count, reverse=True)[:3]
        missed = "; ".join(
            f"{r.network}, {r.fault}, {r.target} (lost {r.lost:.2f})" for r in of if not r.caught
        )
        lines.append(
            f"| {kind} | {len(of)} | {sum(bool(r.caught) for r in of)} | {_quoted(often)} | {missed or '–'} |"
        )
    refused = [r for r in rows if r.kind == "none" and r.caught]
    if refused:
        lines += [
            "",
            "Honest and refused: "
            + "; ".join(f"{r.network}, {r.target} ({', '.join(r.caught)})" for r in refused)
            + ".",
        ]
    return "\n".join(lines)


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _publish(table: str) -> None:
    begin, end = "<!-- begin faults -->", "<!-- end faults -->"
    text = DOCS.read_text(encoding="utf-8")
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    DOCS.write_text(f"{before}{begin}\n{table}\n{end}{after}", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
