"""The compress stage in several processes of this machine, which train together: torch's own launcher starts them.

They leave the stage's result in the cache, where the process that asked finds it. Each is ``edgekit train-part``, and
dies with the launcher, which dies with the process that asked.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from edgekit import errors
from edgekit.compress import recipes
from edgekit.compress.recipes import Recipe
from edgekit.core import files, stops
from edgekit.core.config import Options
from edgekit.core.structure import structure, to_builtins
from edgekit.errors import EdgekitError, RuntimeCrashError
from edgekit.pipeline.stages import BuildContext

_LOOK_S = 0.1
_MOST_BYTES = 16 << 20
_ORDER, _RECIPE, _MADE = "order.json", "recipe.toml", "made.json"


@dataclass(frozen=True, kw_only=True)
class Order:
    """What every process is told: the SOURCE text, the options in force, and where the recipe's file is."""

    source: str
    options: Options
    recipe: Path
    cache: Path


@dataclass(frozen=True, kw_only=True)
class Failed:
    """An error as one process leaves it for the one that asked; ``fields`` are its attributes, but for those that are
    no plain values."""

    type: str
    fields: dict[str, str | int | float | bool | None]

    @classmethod
    def of(cls, error: EdgekitError) -> Failed:
        """What there is to say of ``error``."""
        fields = {k: v for k, v in vars(error).items() if isinstance(v, str | int | float | bool | None)}
        return cls(type=type(error).__name__, fields=fields)

    def error(self) -> EdgekitError:
        """The error again."""
        kind = getattr(errors, self.type)
        error: EdgekitError = kind.__new__(kind, self.fields["message"])
        vars(error).update(self.fields)
        error.args = (self.fields["message"],)
        return error


@dataclass(frozen=True, kw_only=True)
class Made:
    """Where the first process left the plan, and the seconds that it took."""

    folder: Path
    seconds: float


def train(context: BuildContext, source: str, recipe: Recipe, options: Options) -> Made:
    """Run the compress stage of ``source`` in ``options.processes`` processes, into the cache.

    Raises what the first of them raised, :class:`RuntimeCrashError` where one was ended without a word.
    """
    count = options.processes
    with context.store.scratch() as folder, context.progress.task(f"training in {count} processes"):
        path = folder / _RECIPE
        recipes.write(replace(recipe, ship=None), path)
        order = Order(source=source, options=options, recipe=path, cache=context.store.root.absolute())
        files.write(folder / _ORDER, msgspec.json.encode(to_builtins(order)))
        code = _launched(folder / _ORDER, count)
        if code:
            raise _reason(folder, count, code)
        made = msgspec.json.decode(files.read(folder / _MADE, most=_MOST_BYTES))
        return structure(Made, made, where=_MADE)


def _launched(order: Path, count: int) -> int:
    """The launcher's exit status."""
    log = (order.parent / "launcher.log").open("wb")
    with log:
        launcher = subprocess.Popen(
            [
                *(sys.executable, "-P", "-m", "edgekit", "train-part", str(order)),
                *("--processes", str(count), "--parent", str(os.getpid())),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        while (code := launcher.poll()) is None:
            stops.check()
            time.sleep(_LOOK_S)
        return code
    finally:
        with contextlib.suppress(OSError):
            os.killpg(launcher.pid, signal.SIGKILL)
        launcher.wait()


def _reason(folder: Path, count: int, code: int) -> EdgekitError:
    """The error of the process that failed first: the others fail because it is gone."""
    left = sorted(folder.glob("failed-*.json"), key=lambda p: p.stat().st_mtime_ns)
    if left:
        return msgspec.json.decode(files.read(left[0], most=_MOST_BYTES), type=Failed).error()
    words = (folder / "launcher.log").read_text(errors="replace").strip().splitlines()
    said = next((w.strip() for w in words if "Error" in w or "Signal" in w), "")
    return RuntimeCrashError(
        f"training in {count} processes ended with exit status {code} and no reason{': ' + said if said else ''}",
        hint="one of them may have been killed for memory: train with fewer (--processes), or smaller batches",
    )


def read(path: Path) -> Order:
    """The order that :func:`train` wrote."""
    return structure(Order, msgspec.json.decode(files.read(path, most=_MOST_BYTES)), where=str(path))


def deliver(made: Made, order: Path) -> None:
    """What the first process made, for the one that asked."""
    files.write(order.parent / _MADE, msgspec.json.encode(to_builtins(made)))


def leave(error: EdgekitError, order: Path) -> None:
    """What went wrong in this process, for the one that asked."""
    name = f"failed-{os.environ.get('RANK', '0')}.json"
    files.write(order.parent / name, msgspec.json.encode(Failed.of(error)))


def launch(order: Path, count: int) -> None:
    """Be torch's launcher for ``count`` processes, on an address of this machine that is free."""
    from torch.distributed.run import main

    main(["--standalone", "--nproc-per-node", str(count), "--module", "edgekit", "train-part", str(order)])
