"""Do the gates refuse what is right? Whole builds of the zoo and of networks with real weights, with default limits.

    python tools/honest_artifacts.py run [PATTERN…] [--sample N] [--seed S] [--out FILE]   # zoo and real networks
    python tools/honest_artifacts.py table FILE                                          # the table of docs/gates.md

Each network goes through the pipeline of ``edgekit build``, fp32 and INT8 on three runtimes, in a process of its own.
The zoo has random weights and random inputs; real networks are calibrated and evaluated on their data. Speed is not
judged: it is a fact about the machine. A sample of
the zoo is drawn from every family in proportion, with the seed. Every refusal is held against the truth:

- fp32: the largest error against PyTorch in float64, and that of PyTorch's own float32, relative to the largest value;
- INT8: the same Q/DQ graph computed in float. Where that fails the same gates, the model does not survive eight bits
  as it was quantized, and the refusal is right. Where it passes, the runtime computes otherwise: on x86 without VNNI
  sums saturate, and the artifact is built again as ``--device local`` builds it.

A refusal is false where the artifact is right: an fp32 error below the zoo's limit or ten times PyTorch's own, or INT8
within 3 dB of its graph in float while that passes.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs" / "gates.md"
FLOAT = ("ort-fp32", "openvino-fp32", "tflite-fp32")
INT8 = ("ort-int8", "openvino-int8", "tflite-int8")
SAMPLES = 8
EVALUATED = 128
LIMIT, OWN_ROUNDING, NEAR_DB = 1e-4, 10.0, 3.0
SECONDS = 900
NO_RESULT = "no result"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One artifact. ``refused``: the gates that failed; ``error``: why there is none. Of a refused one the truth:
    fp32 ``largest`` and PyTorch's ``own`` error against float64; INT8 ``snr`` and that of the graph in float
    (``emulated``), the gates that fail there (``also``), and those with ``--device local`` (``local``)."""

    network: str
    target: str
    refused: tuple[str, ...] = ()
    error: str = ""
    message: str = ""
    snr: float = math.nan
    largest: float = math.nan
    own: float = math.nan
    emulated: float = math.nan
    also: tuple[str, ...] = ()
    local: tuple[str, ...] | None = None

    @property
    def verdict(self) -> str:
        """passed, not built, or what a refusal is: false, saturated, or right."""
        if self.error:
            return "not built"
        if not self.refused:
            return "passed"
        if not math.isnan(self.largest):
            right = self.largest <= max(LIMIT, OWN_ROUNDING * self.own)
            return "false" if right else "right"
        if self.also:
            return "right"
        if self.snr >= self.emulated - NEAR_DB:
            return "false"
        return "saturated" if not self.local else "false"  # refused where nothing saturates


def main() -> int:
    """Parse the command line and run one of the commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run")
    run.add_argument("patterns", nargs="*", default=["*"])
    run.add_argument("--sample", type=int, help="this many of the zoo's, from every family")
    run.add_argument("--seed", type=int, default=0)
    run.add_argument("--small", action="store_true", help="of those below 3 M parameters and 200 operators")
    run.add_argument("--targets", default=",".join((*FLOAT, *INT8)))
    run.add_argument("--out", type=Path, default=Path("build/honest.json"))
    table = commands.add_parser("table")
    table.add_argument("file", type=Path)
    child = commands.add_parser("child")
    child.add_argument("name")
    child.add_argument("targets")
    child.add_argument("file", type=Path)
    options = parser.parse_args()
    if options.command == "child":
        rows = list(_built(options.name, options.targets.split(",")))
        options.file.write_text(json.dumps([asdict(r) for r in rows]))
        return 0
    if options.command == "table":
        publish(_read(options.file))
        return 0
    return _run(options)


def _run(options: argparse.Namespace) -> int:
    names = [f"real/{n}" for n in _real()] + drawn(options.sample, options.seed, small=options.small)
    names = [n for n in names if any(fnmatch.fnmatch(n, p) for p in options.patterns)]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    rows = _read(options.out) if options.out.is_file() else []
    done = {r.network for r in rows}
    for name in (n for n in names if n not in done):
        start = time.monotonic()
        rows += (found := _in_a_process(name, options.targets))
        for row in found:
            detail = ", ".join(row.refused) or row.error
            print(f"{name:44} {row.target:14} {row.verdict:10} {row.snr:6.1f} {detail} {row.message[:90]}")
        print(f"{name}: {time.monotonic() - start:.0f} s", flush=True)
        options.out.write_text(json.dumps([asdict(r) for r in rows], indent=1))
    print(summary(rows))
    return 1 if any(r.verdict == "false" for r in rows) else 0


def drawn(count: int | None, seed: int, *, small: bool) -> list[str]:
    """The zoo's names; of ``count`` each family has its share, at least one, drawn with ``seed``."""
    known = json.loads((ROOT / "docs" / "zoo.json").read_text(encoding="utf-8"))
    families: dict[str, list[str]] = {}
    for name, stages in known.items():
        fits = stages["export"].get("parameters", math.inf) < 3e6
        fits &= stages.get("fp32", {}).get("operators", math.inf) < 200
        if fits or not small:
            families.setdefault(name.partition("/")[0], []).append(name)
    whole = sum(map(len, families.values()))
    if count is None or count >= whole:
        return [n for names in families.values() for n in names]
    rng = random.Random(seed)
    chosen = [
        n for names in families.values() for n in rng.sample(names, max(1, round(count * len(names) / whole)))
    ]
    rng.shuffle(chosen)  # what a run that is stopped has done is a sample, too
    return chosen


def _real() -> list[str]:
    from real_networks import NETWORKS

    return list(NETWORKS)


def _in_a_process(name: str, targets: str) -> list[Row]:
    """The rows of one network; a crash or a timeout is a row as well."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.json"
        environment = os.environ | {"EDGEKIT_CACHE": str(Path(folder) / "cache"), "OMP_NUM_THREADS": "1"}
        argv = [sys.executable, __file__, "child", name, targets, str(file)]
        try:
            done = subprocess.run(
                argv,
                env=environment,
                cwd=folder,
                capture_output=True,
                text=True,
                timeout=SECONDS,
                check=False,
            )
            told = (done.stderr.strip().splitlines() or [""])[-1]
        except subprocess.TimeoutExpired:
            told = f"no result after {SECONDS} s"
        return (
            _read(file)
            if file.is_file()
            else [Row(network=name, target="all", error=NO_RESULT, message=told)]
        )


def _read(file: Path) -> list[Row]:
    rows = json.loads(file.read_text())
    lists = ("refused", "also", "local")
    return [Row(**{k: tuple(v) if k in lists and v is not None else v for k, v in r.items()}) for r in rows]


# --- one network ---------------------------------------------------------------------------------------------


def _built(name: str, targets: Sequence[str]) -> Iterator[Row]:
    """Its artifacts, each refusal with the truth."""
    from honest_trial import Trial, real, zoo

    network = real(name.removeprefix("real/"), EVALUATED) if name.startswith("real/") else zoo(name, SAMPLES)
    if isinstance(network, str):
        yield Row(network=name, target="all", error="not exported", message=network)
        return
    trial = Trial(network, targets)
    for outcome in trial.outcomes():
        row = Row(network=name, target=outcome.target.name)
        if outcome.error is not None:
            error = outcome.error
            yield replace(row, error=f"{type(error).__name__} ({error.exit_code})", message=error.message)
        else:
            yield replace(row, **trial.judged(outcome))


# --- the table -----------------------------------------------------------------------------------------------


def summary(rows: Sequence[Row]) -> str:
    """One line: how many, and how many of the right ones were refused."""
    made = [r for r in rows if r.verdict != "not built"]
    honest = [r for r in made if r.verdict in ("passed", "false")]
    false = sum(r.verdict == "false" for r in made)
    return (
        f"{len({r.network for r in made})} networks, {len(made)} artifacts; of the {len(honest)} that are right "
        f"{false} refused ({100 * false / max(len(honest), 1):.1f} %)"
    )


def page(rows: Sequence[Row]) -> str:
    """The summary, the counts by target, and every refusal."""
    kinds = ("passed", "false", "right", "saturated", "not built")
    lines = [
        summary(rows) + ".",
        "",
        "| target | " + " | ".join(_HEAD[k] for k in kinds) + " |",
        "|---|" + "---|" * len(kinds),
    ]
    for target in (*FLOAT, *INT8):
        counts = Counter(r.verdict for r in rows if r.target == target)
        lines.append(f"| `{target}` | " + " | ".join(str(counts[k]) for k in kinds) + " |")
    lines += ["", "| refused | target | gates | dB | the truth |", "|---|---|---|---|---|"]
    for r in rows:
        if r.refused:
            gates = ", ".join(f"`{g}`" for g in r.refused)
            lines.append(f"| {r.network} | `{r.target}` | {gates} | {r.snr:.1f} | {truth(r)} |")
    left = sorted({r.network for r in rows if r.error == NO_RESULT})
    lines += ["", f"No result in {SECONDS} s: {', '.join(left)}."] if left else []
    return "\n".join(lines)


_HEAD = {
    "passed": "passed", "false": "right, refused", "right": "wrong, refused", "saturated": "saturated here",
    "not built": "not built",
}  # fmt: skip


def truth(row: Row) -> str:
    """What a refusal was held against."""
    if not math.isnan(row.largest):
        return f"{row.largest:.1e} from float64, PyTorch's float32 {row.own:.1e}"
    told = f"its graph in float {row.emulated:.1f} dB"
    if row.also:
        return f"{told}, refused as well"
    if row.local is None:
        return told
    return f"{told}; `--device local` " + ("passes" if not row.local else "is refused, too")


def publish(rows: Sequence[Row]) -> None:
    """Into docs/gates.md."""
    begin, end = "<!-- begin honest -->", "<!-- end honest -->"
    before, _, rest = DOCS.read_text(encoding="utf-8").partition(begin)
    _, _, after = rest.partition(end)
    DOCS.write_text(f"{before}{begin}\n{page(rows)}\n{end}{after}", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
