"""What is asked of an engine with ``--set``: whatever the model is, it can be refused before anything is done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgekit.backends.nvidia.engine import release
from edgekit.backends.nvidia.profiles import axis_sizes, compute_capabilities
from edgekit.backends.nvidia.request import NEEDED_CAPABILITY
from edgekit.errors import ConfigError, UnsupportedError
from edgekit.types import Option, Precision, Target

_BUILDS_FOR = ("SM75", "SM80", "SM86", "SM89", "SM120", "SM121")
_OF = (1, 7)
"""The compute capabilities that TensorRT for RTX builds for, and up to which release it is these."""


def check_options(target: Target, options: Mapping[str, Option], *, builder: str = "") -> None:
    """``builder``: the version of TensorRT for RTX that is installed, where it is to build.

    Raises:
        ConfigError: sizes of axes or compute capabilities that say nothing, or that there are not; a DLA for what it
            does not compute in.
        UnsupportedError: GPUs that do not compute in the target's precision.
    """
    axis_sizes(str(options.get("axes", "")))
    capabilities = compute_capabilities(options.get("compute_capabilities", ""))
    unknown = [c for c in capabilities if c not in _BUILDS_FOR]
    if unknown and builder and release(builder) <= _OF:
        raise ConfigError(
            f"TensorRT for RTX {builder} builds nothing for compute capability {', '.join(unknown)}",
            hint=f"--set compute_capabilities is of {', '.join(_BUILDS_FOR)}",
        )
    refuse_lacking(capabilities, target)
    if int(options.get("dla", -1)) >= 0 and target.precision not in _DLA:
        raise ConfigError(
            f"--set dla={options['dla']}: a DLA does not compute in {target.precision}",
            hint="leave --set dla out, or build tensorrt-fp16 or tensorrt-int8",
        )


_DLA = (Precision.FP16, Precision.INT8)
"""What NVIDIA's deep learning accelerators compute in."""


def refuse_lacking(capabilities: Sequence[str], target: Target) -> None:
    """The builder says of a GPU that has no such arithmetic that it cannot compile, and not why."""
    needed = NEEDED_CAPABILITY.get(target.precision)
    if needed is None:
        return
    older = [c for c in capabilities if int(c[2:]) < 10 * needed[0] + needed[1]]
    if older:
        raise UnsupportedError(
            f"{target.name} needs compute capability {needed[0]}.{needed[1]}: "
            f"{', '.join(older)} has no {target.precision}",
            hint="leave these out of --set compute_capabilities, and build an fp16 or int8 target for them",
        )
