"""What is asked of a build, and what of it can be refused before any work."""

from __future__ import annotations

from dataclasses import dataclass

from edgekit.artifact import limits
from edgekit.compress import recipes
from edgekit.core import cache, config, settings
from edgekit.core.config import Options
from edgekit.devices.catalogue import device
from edgekit.errors import CalibrationRequiredError, UnknownNameError, UsageError
from edgekit.load import samples
from edgekit.load.data import RANDOM, DataSpec
from edgekit.load.shapes import Shapes
from edgekit.pipeline.deliver import refuse_taken
from edgekit.pipeline.metric import named
from edgekit.quantize.calibrate.codes import CODES
from edgekit.quantize.options import QuantizeOptions
from edgekit.types import SourceSpec, Target, TorchModel


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to build. ``calibration`` and ``evaluation`` are DATA texts or samples given in Python."""

    source: SourceSpec
    targets: tuple[Target, ...]
    options: Options
    calibration: DataSpec | None = None
    evaluation: DataSpec | None = None
    module: TorchModel | None = None


def check(request: Request) -> None:
    """Everything that can be refused before any work is done: no code of the user's runs, no model is read.

    Raises what the option says that is wrong: :class:`UsageError`, :class:`ConfigError`, :class:`UnknownNameError`,
    :class:`DataError`, :class:`CalibrationRequiredError`, :class:`UnsupportedError`.
    """
    _check_quantization(request)
    _check_files(request)
    if request.options.device:
        device(request.options.device)
    config.refuse_unknown_settings(request.targets, request.options.set)
    config.build_settings(request.options.set)
    if Shapes.of(request.options).bound and request.options.recipe:
        raise UsageError(
            "--bind and --recipe are two builds: the recipe's steps know the model with all its inputs",
            hint="edgekit compress first, then edgekit build its result with --bind",
        )
    for code in request.options.accept_data:
        if code not in CODES:
            raise UnknownNameError("finding of the calibration doctor", code, CODES)
    settings.check(request.targets, request.options.set)
    limits.parse(request.options.limit)
    refuse_taken(request.options.out, [t.name for t in request.targets])
    if request.options.max_drop is not None and "metric-drop" in request.options.limit:
        raise UsageError(
            "--max-drop and --limit metric-drop say the same",
            hint="leave one of them out; --max-drop searches too",
        )
    needing = [t.name for t in request.targets if t.needs_calibration]
    if needing and request.calibration is None:
        raise CalibrationRequiredError(
            f"{', '.join(needing)} needs calibration data: INT8 ranges come from real inputs",
            hint="pass --calib file.py:callable (a generator of inputs), a directory of .npz, or of images; "
            "--calib random is possible for a look at the size, and marks the artifact as uncalibrated",
        )


def _check_quantization(request: Request) -> None:
    for target in request.targets:
        QuantizeOptions.of(request.options, target)


def _check_files(request: Request) -> None:
    """Sizes, and what options name that has to be there."""
    options = request.options
    if options.memory:
        cache.parse_memory(options.memory, what="--memory")
    for data in (request.calibration, request.evaluation):
        if isinstance(data, str) and data not in ("", RANDOM):
            samples.refuse_missing(data)
    if options.metric:
        samples.refuse_missing(named(options.metric)[0])
    if options.recipe:
        recipes.read(options.recipe)
