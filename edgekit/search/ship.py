"""What is made of a compressed model in the end: a target's artifact, coded without loss.

The one path for a recipe's ``[ship]`` table and for the search under a budget: equal recipes give equal bytes.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from edgekit.artifact.manifest import Artifact
from edgekit.compress.recipes import Ship
from edgekit.core import targets
from edgekit.core.config import Options
from edgekit.core.files import scratch
from edgekit.errors import ConfigError
from edgekit.load.source import Source
from edgekit.pipeline import build
from edgekit.pipeline.request import Request
from edgekit.pipeline.stages import BuildContext
from edgekit.quantize.options import QuantizeOptions


@dataclass(frozen=True, kw_only=True)
class Shipped:
    """The artifact that passed its gates, and what its model files weigh as they travel (``packed``)."""

    artifact: Artifact
    packed: Path
    size: int


def ship(context: BuildContext, source: Source, shipping: Ship) -> Shipped:
    """Build ``shipping.target`` of a plan, run it, gate it, and code its model files.

    Raises what a build raises; an artifact that does not pass its gates is among the errors.
    """
    options = shipped_options(context.options, shipping)
    request = Request(
        source=source.spec,
        targets=targets.select(shipping.target),
        options=options,
        calibration=calibration(options),
        evaluation=options.eval or None,
    )
    outcomes = build.run(request, replace(context, options=options))
    build.raise_failures(outcomes, options)
    artifact = outcomes[0].artifact
    assert artifact is not None
    files = [artifact.directory / f.name for f in artifact.manifest.files]
    if not shipping.pack:
        return Shipped(artifact=artifact, packed=files[0], size=sum(f.stat().st_size for f in files))
    packed = pack(files, artifact.directory.parent / f"{shipping.target}.ekz")
    return Shipped(artifact=artifact, packed=packed, size=packed.stat().st_size)


def check(options: Options, shipping: Ship) -> None:
    """Raise :class:`ConfigError` and its kin for what can be known to be wrong before hours of training."""
    found = targets.select(shipping.target)
    if len(found) != 1:
        raise ConfigError(
            f"[ship] names {len(found)} targets: {shipping.target[:80]}", hint="a recipe ships one target"
        )
    if found[0].task:
        raise ConfigError(
            f"[ship] names {found[0].name}, which takes language models alone",
            hint="edgekit targets lists the others",
        )
    QuantizeOptions.of(shipped_options(options, shipping), found[0])


def shipped_options(options: Options, shipping: Ship) -> Options:
    """The options of the build: those of the command, the recipe's range method, no recipe of its own."""
    return replace(options, target=(shipping.target,), method=shipping.method, recipe="", speed_gate=False)


def calibration(options: Options) -> str | None:
    """``--calib``, else what is trained on: real inputs either way."""
    return options.calib or options.train or None


def pack(files: list[Path], out: Path) -> Path:
    """The model's files in one ``.ekz``."""
    from edgekit import entropy

    if len(files) == 1:
        entropy.pack(files[0], out)
        return out
    with scratch(out.parent) as folder:
        inner = folder / out.stem
        inner.mkdir()
        for file in files:
            shutil.copyfile(file, inner / file.name)
        entropy.pack(inner, folder / out.name)
        (folder / out.name).replace(out)
    return out
