"""Every failure that a user can cause, one class each, with the exit code of its family.

An error says what happened (``message``) and what to do about it (``hint``). The command line prints
both and exits with ``exit_code``; from Python they are ordinary exceptions. Causes are chained with
``raise … from …``.

Exit codes: 1 unexpected, 2 usage or configuration, 3 source, 4 unsupported on the target, 5 a gate
failed, 6 backend or tool missing, 7 device, 8 time over; where a signal ended it 128 and its number: 129 SIGHUP,
130 SIGINT, 143 SIGTERM.
"""

from __future__ import annotations

import difflib
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

_MANY_NAMES = 60
"""More than there are of anything of edgekit's; a file of somebody else's can have any number."""
_FEW_NAMES = 5
"""Of a folder's files or a module's attributes, where none is near."""


class EdgekitError(Exception):
    """Base of every error that edgekit raises on purpose."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def about(self, what: str) -> Self:
        """The same error, with ``what`` it is about in front of its message where that does not say so."""
        if what not in self.message:
            self.message = f"{what}: {self.message}"
            self.args = (self.message,)
        return self

    def to_json(self) -> dict[str, object]:
        """The error as the ``error`` member of a ``--json`` document."""
        return {
            "type": type(self).__name__,
            "message": self.message,
            "hint": self.hint,
            "exit_code": self.exit_code,
        }


class Stopped(KeyboardInterrupt):
    """SIGTERM or SIGHUP came: everything ends as with Ctrl-C, and nothing goes on with what it has so far."""

    def __init__(self, signal: int) -> None:
        super().__init__()
        self.signal = signal


class DefectError(EdgekitError):
    """Something that edgekit did not foresee went wrong while it worked on one target."""

    @classmethod
    def of(cls, error: BaseException, where: str) -> DefectError:
        """Wrap ``error``, with the end of its traceback in the message."""
        trace = "".join(traceback.format_exception(error))[-3000:]
        defect = cls(
            f"{where}: unexpected {type(error).__name__}\n{trace}", hint="this is a defect; please report it"
        )
        defect.__cause__ = error
        return defect


class SweepError(EdgekitError):
    """Cells of a sweep failed; it ends with the code of the first of them."""

    def __init__(self, message: str, *, code: int, hint: str) -> None:
        super().__init__(message, hint=hint)
        self.exit_code = code  # type: ignore[misc]  # the first cell's, not a family's


# --- 2: usage and configuration ---------------------------------------------------------------------


class UsageError(EdgekitError):
    """A command, option or argument cannot be meant as written."""

    exit_code = 2


class UnknownNameError(UsageError):
    """A name is not among those that exist; the nearest are offered."""

    def __init__(self, kind: str, name: str, known: Iterable[str], *, where: str = "") -> None:
        self.kind, self.name, self.known = kind, name, tuple(sorted(known))
        self.nearest = tuple(difflib.get_close_matches(name, self.known, n=3, cutoff=0.5))
        place = f" in {where}" if where else ""
        offer = self.nearest or self.known
        hint = f"did you mean {_join(self.nearest)}?" if self.nearest else f"known: {_join(offer)}"
        super().__init__(f"unknown {kind} {name!r}{place}", hint=hint)


class ConfigError(UsageError):
    """A configuration file, environment variable or ``--set`` value is wrong."""


class ComposeError(ConfigError):
    """A step of a recipe cannot keep what a step before it made of the weights."""


class UnknownOptionError(UnknownNameError, ConfigError):
    """An option, or a value of one with few values, that does not exist: in a file, the environment or Python."""


class DataError(UsageError):
    """A calibration or evaluation sample has the wrong shape, dtype or values, or there is none."""


class TrainingError(UsageError):
    """Training ended with a model that is of no use: not finite, or no better than answers without looking."""


class MetricError(UsageError):
    """The user's metric raised, or gave no finite number; ``user_traceback`` is theirs, where it raised."""

    def __init__(self, message: str, *, hint: str, user_traceback: str = "") -> None:
        super().__init__(message, hint=hint)
        self.user_traceback = user_traceback


class CalibrationRequiredError(DataError):
    """An INT8 target was asked for without calibration data."""


class ContainerError(UsageError):
    """A compressed container is damaged, truncated, hostile or of another version. Nothing was unpacked."""


# --- 3: the source ----------------------------------------------------------------------------------


class SourceError(EdgekitError):
    """The source cannot be found, loaded or understood."""

    exit_code = 3


class NotCalibratableError(SourceError):
    """Calibration cannot look into the graph: of no concern to targets that do without."""


class FactoryError(SourceError):
    """The user's own code raised; ``user_traceback`` is theirs, without edgekit's frames."""

    def __init__(self, message: str, *, hint: str, user_traceback: str) -> None:
        super().__init__(message, hint=hint)
        self.user_traceback = user_traceback


class UntrustedSourceError(SourceError):
    """Loading the source would execute code or leave its folder."""


class UntrustedEngineError(UntrustedSourceError):
    """An engine is code for a GPU, and this one was not built by this user of this machine."""


class MemoryLimitError(SourceError):
    """Loading or running it would take more memory than there is, or than it is allowed."""


class ExportError(SourceError):
    """The module could not be exported to ONNX, or the export computes something else."""


# --- 4: unsupported on the target -------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class UnsupportedNode:
    """One node that a target cannot express."""

    op: str
    node: str
    reason: str
    module_path: str = ""


class UnsupportedError(EdgekitError):
    """The target cannot express the model or the scheme."""

    exit_code = 4


class UnsupportedOperatorsError(UnsupportedError):
    """Operators that the target lacks: all of them at once."""

    def __init__(
        self, target: str, nodes: Sequence[UnsupportedNode], *, supported_by: Sequence[str] = ()
    ) -> None:
        self.target, self.nodes, self.supported_by = target, tuple(nodes), tuple(supported_by)
        lines = [
            f"  {n.op} at {n.node}"
            + (f" (module {n.module_path})" if n.module_path else "")
            + f": {n.reason}"
            for n in self.nodes
        ]
        count = f"{len(self.nodes)} operator" + ("s" if len(self.nodes) != 1 else "")
        hint = (
            f"these targets can express them: {_join(self.supported_by)}"
            if self.supported_by
            else "rewrite the module without them, or choose a target on another backend (edgekit targets)"
        )
        super().__init__(f"{target} cannot express {count}:\n" + "\n".join(lines), hint=hint)

    def to_json(self) -> dict[str, object]:
        """Adds the list of nodes."""
        nodes = [
            {"op": n.op, "node": n.node, "module": n.module_path, "reason": n.reason} for n in self.nodes
        ]
        return super().to_json() | {"nodes": nodes, "supported_by": list(self.supported_by)}


# --- 5: a gate failed -------------------------------------------------------------------------------


class GateFailedError(EdgekitError):
    """An artifact was built and run, and did not pass. ``gates`` names which."""

    exit_code = 5

    def __init__(self, message: str, *, hint: str, gates: Sequence[str]) -> None:
        super().__init__(message, hint=hint)
        self.gates = tuple(gates)


# --- 6: backend or tool missing ---------------------------------------------------------------------


class BackendError(EdgekitError):
    """A runtime or tool failed on its own terms."""

    exit_code = 6


class OpenAxesError(BackendError):
    """A runtime does not take the model while axes are open; with fixed shapes it may."""


class MissingExtraError(BackendError):
    """A package is not installed; the hint is the exact command that installs it."""

    def __init__(self, what: str, extra: str = "", *, requirement: str = "") -> None:
        """``extra`` is one of edgekit's; a plug-in's backend has a ``requirement`` of its own."""
        self.requirement = requirement or f"edgekit-deploy[{extra}]"
        super().__init__(f"{what} is not installed", hint=f"pip install '{self.requirement}'")


class ToolMissingError(BackendError):
    """A program outside Python is missing."""


class PluginError(BackendError):
    """A plug-in cannot be loaded, or two of them claim the same name."""


class RuntimeCrashError(BackendError):
    """The runtime ended its process (signal, abort) or never answered."""


class EngineMismatchError(BackendError):
    """An engine is damaged, or was built for another GPU, runtime, driver or graph: it was not loaded.

    ``differences`` names each thing that does not fit, in words.
    """

    def __init__(self, message: str, *, hint: str = "", differences: Sequence[str] = ()) -> None:
        super().__init__(
            message,
            hint=hint or "build it where it is to run: edgekit build … --device NAME",
        )
        self.differences = tuple(differences)


class EngineBuildError(BackendError):
    """No engine can be made of a graph where it is to run: what the builder said, not a fault of the artifact."""


class NotRunnableError(BackendError):
    """The artifact cannot run on this machine (for example: no NVIDIA GPU). It was not run."""


# --- 7: devices -------------------------------------------------------------------------------------


class DeviceError(EdgekitError):
    """A device cannot be reached, is busy, or failed while it worked."""

    exit_code = 7


class UnreachableError(DeviceError):
    """No connection to a device can be made: address, network, host key or log-in."""


class LinkLostError(DeviceError):
    """The connection to a device broke while it was in use."""


class DeviceBusyError(DeviceError):
    """Another benchmark holds the device."""


class RunCancelledError(DeviceError):
    """Somebody cancelled the run (``BenchSettings.cancel``); what was at work on the device has been ended."""


class DeviceTimeoutError(DeviceError, RuntimeCrashError):
    """A job on a device across a link gave no answer in its time, and was ended there."""


class RuntimeMissingError(DeviceError, MissingExtraError):
    """A device across a link lacks a runtime; here it may well be installed."""

    def __init__(self, message: str, *, hint: str) -> None:
        DeviceError.__init__(self, message, hint=hint)


# --- 8: time ---------------------------------------------------------------------------------------


class TimeLimitError(EdgekitError):
    """The time that ``--timeout`` gave is over. What was at work has been ended."""

    exit_code = 8


def told_once(errors: Iterable[EdgekitError]) -> list[tuple[EdgekitError, list[int]]]:
    """Each error that says something else than those before it, with the numbers of all that say the same: what the
    user's own code raises, it raises for every target."""
    places: dict[tuple[type, str, str], tuple[EdgekitError, list[int]]] = {}
    for number, error in enumerate(errors):
        places.setdefault((type(error), error.message, error.hint), (error, []))[1].append(number)
    return list(places.values())


def first_line(error: BaseException) -> str:
    """What an exception says, its first line; the name of its class where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def near_names(name: str, existing: Iterable[str]) -> str:
    """A hint for a name that somebody's folder or module has not: the nearest, else a few of those that are there."""
    known = sorted(existing)
    if nearest := difflib.get_close_matches(name, known, n=3, cutoff=0.5):
        return f"did you mean {_join(nearest)}?"
    return f"there are {_join(known, _FEW_NAMES)}" if known else "check the spelling"


def _join(names: Sequence[str], most: int = _MANY_NAMES) -> str:
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
