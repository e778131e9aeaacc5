"""``edgekit verify``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from edgekit.golden import Replay
    from edgekit.manifest import Artifact


@click.command()
@click.argument("artifacts", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--device", default="local", show_default=True, metavar="NAME", help="Where to run them.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def verify(artifacts: tuple[Path, ...], device: str, as_json: bool) -> None:
    """Run each of ARTIFACTS again on its real runtime, here or on a device, and check its gates.

    Uses the golden vectors inside the artifact: real inputs with the source's outputs. Nothing else is
    needed, neither the source nor its data. An artifact that could not be run where it was built takes
    its verdict from here.
    """
    from edgekit import golden, manifest
    from edgekit.cli._output import print_json, progress
    from edgekit.devices import catalogue

    where = catalogue.device(device)
    results = []
    with progress() as shown:
        for path in artifacts:
            artifact = manifest.read(path)
            with shown.task(f"run {artifact.target}"):
                result = golden.replay(artifact, device=where)
            golden.adopt(artifact, result)
            results.append((artifact, result))
    if as_json:
        print_json(
            {
                "artifacts": [
                    {"artifact": str(a.directory), "status": r.status, "replay": r} for a, r in results
                ]
            }
        )
    else:
        _show(results)
    _refuse_failed(results)


def _show(results: list[tuple[Artifact, Replay]]) -> None:
    from edgekit.cli._output import table

    rows = []
    for artifact, result in results:
        recorded = result.recorded
        for gate in result.gates:
            value = "-" if gate.value is None else f"{gate.value:.4g}"
            limit = "-" if gate.limit is None else f"{gate.limit:.4g}"
            rows.append((artifact.target, gate.name, value, limit, str(gate.verdict)))
        then = f"{recorded.snr_db:.1f} dB when built" if recorded else "first run"
        rows.append((artifact.target, "(SNR now)", f"{result.parity.snr_db:.1f}", then, result.status))
    table("", ("artifact", "gate", "value", "limit", "verdict"), rows)


def _refuse_failed(results: list[tuple[Artifact, Replay]]) -> None:
    from edgekit.errors import GateFailedError
    from edgekit.gates import failed

    bad = [(a, failed(r.gates)) for a, r in results if r.status == "failed"]
    if bad:
        names = "; ".join(f"{a.target}: {', '.join(gates)}" for a, gates in bad)
        raise GateFailedError(
            f"gates failed: {names}",
            hint="compare runtime versions and processor with those in manifest.json",
            gates=[g for _, gates in bad for g in gates],
        )
