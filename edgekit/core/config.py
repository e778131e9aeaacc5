"""The options of a build, declared once, and where their values come from.

Later wins: the user's own file (``~/.config/edgekit/edgekit.toml``), the project's (``edgekit.toml``, or
``[tool.edgekit]`` in pyproject.toml), ``EDGEKIT_<OPTION>``, then the command line or Python.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgekit.core import toml
from edgekit.core.declared import Declared, declared_options, find, option, strict
from edgekit.core.targets import user_dir
from edgekit.errors import ConfigError, UnknownNameError
from edgekit.types import Option, OptionSpec, Target

BUILD_SETTINGS = (
    OptionSpec(
        name="fold_preprocessing",
        default=False,
        help="make colour order, scaling and layout of the preprocessing contract part of the model",
    ),
    OptionSpec(
        name="pixels",
        default="float32",
        choices=("float32", "uint8"),
        help="what a model with its preprocessing folded in takes: pixels from 0 to 255 in this type",
    ),
)
"""``--set`` options that every target understands."""

FILE = "edgekit.toml"

CONTRACTS = ("preprocessing", "postprocessing")
"""Tables that a file alone can say."""

_NOTHING: Mapping[str, object] = {}
_NO_SETTINGS: Mapping[str, Option] = {}

_MODEL, _DATA, _COMPRESSION = "Model and target", "Data", "Compression"
_QUANTIZATION, _GATES, _LIMITS, _PERMISSIONS = "Quantization", "Gates", "Limits", "Permissions"


@strict
@dataclass(frozen=True, kw_only=True, repr=False)
class Options:
    """What a build, a compression or a comparison can be told; docs/options.md lists every option.

    A name that is no option is an :class:`~edgekit.errors.UnknownOptionError`, a value of another type a
    :class:`~edgekit.errors.ConfigError`.
    """

    target: tuple[str, ...] = option(
        (),
        Declared(
            help="What to build for, or all; edgekit targets lists them.",
            help_for={"compress": "Targets among which the search may choose."},
            group=_MODEL,
            commands=("build", "compress"),
            flags=("--target", "-t"),
            metavar="T[,T…]|all",
            split=True,
        ),
    )
    out: Path = option(  # noqa: RUF009 - a path cannot be changed
        Path("build"),
        Declared(
            help="Where artifacts go: DIR/<target>/ (default: build).",
            group=_MODEL,
            commands=("build",),
            flags=("--out", "-o"),
            metavar="DIR",
        ),
    )
    device: str = option(
        "",
        Declared(
            help="Quantize for this device's processor, and run and gate there.",
            group=_MODEL,
            commands=("build",),
            metavar="NAME",
        ),
    )
    set: Mapping[str, Option] = option(
        _NO_SETTINGS,
        Declared(
            help="An option of the target, or fold_preprocessing=true, pixels=uint8.",
            group=_MODEL,
            commands=("build",),
            metavar="KEY=VALUE",
        ),
    )
    preprocessing: Mapping[str, object] = option(
        _NOTHING,
        Declared(
            help="The preprocessing contract of the model's images, in place of the source's.", group=_MODEL
        ),
    )
    postprocessing: Mapping[str, object] = option(
        _NOTHING,
        Declared(
            help="The post-processing contract of the outputs for packages, in place of the source's.",
            group=_MODEL,
        ),
    )
    shape: Mapping[str, Option] = option(
        _NO_SETTINGS,
        Declared(
            help="The shape of an example input: sizes of its dynamic axes, and what fixed-shape targets take.",
            group=_MODEL,
            commands=("build", "compress", "diff"),
            metavar="NAME=1x128",
        ),
    )
    bind: Mapping[str, Option] = option(
        _NO_SETTINGS,
        Declared(
            help="An input that becomes a constant of the model: a number, true or false, or a .npy file.",
            group=_MODEL,
            commands=("build", "diff"),
            metavar="NAME=VALUE",
        ),
    )
    state: Mapping[str, Option] = option(
        _NO_SETTINGS,
        Declared(
            help="An input that takes an output of the step before (none: it is no state, whatever its name says).",
            group=_MODEL,
            commands=("build",),
            metavar="NAME=OUTPUT",
        ),
    )
    sequence_length: int | None = option(
        None,
        Declared(
            help="Pad the example and all samples to so many tokens, as the tokenizer of an hf: source does.",
            group=_MODEL,
            commands=("build", "compress", "diff"),
            metavar="N",
            minimum=1,
        ),
    )
    calib: str = option(
        "",
        Declared(
            help="Calibration inputs: file.py:callable, a directory of .npz files or of images.",
            help_for={
                "compress": "Calibration inputs, where the search may quantize.",
                "diff": "Calibration inputs for --apply.",
            },
            group=_DATA,
            commands=("build", "compress", "diff"),
            metavar="DATA",
        ),
    )
    eval: str = option(
        "",
        Declared(
            help="Evaluation inputs, with labels where there are any.",
            help_for={
                "compress": "Labelled evaluation inputs that the task metric is measured on.",
                "diff": "Evaluation inputs for --apply.",
            },
            group=_DATA,
            commands=("build", "compress", "diff"),
            metavar="DATA",
        ),
    )
    samples: int = option(
        512,
        Declared(
            help="How many calibration samples to use at most, evenly spaced over all of them.",
            group=_DATA,
            commands=("build",),
            metavar="N",
            minimum=1,
        ),
    )
    accept_data: tuple[str, ...] = option(
        (),
        Declared(
            help="Calibrate in spite of what the calibration doctor found: the finding's code.",
            group=_DATA,
            commands=("build",),
            metavar="CODE",
        ),
    )
    recipe: str = option(
        "",
        Declared(
            help="Compress first: a recipe file, or steps on one line.",
            group=_COMPRESSION,
            commands=("build",),
            metavar="FILE|STEPS",
        ),
    )
    task: str = option(
        "",
        Declared(
            help="What a recipe trains for: classification, token-classification, regression, embedding, or your "
            "own: file.py:name.",
            help_for={
                "build": "What the outputs mean (classification, segmentation, detection, matting …), where the source "
                "does not say it, and what a recipe trains for. text-generation: language models with their cache."
            },
            group=_COMPRESSION,
            commands=("build", "compress"),
            metavar="TASK",
        ),
    )
    train: str = option(
        "",
        Declared(
            help="Labelled inputs to train on: file.py:callable, .npz files, images.",
            group=_COMPRESSION,
            commands=("build", "compress"),
            metavar="DATA",
        ),
    )
    accelerator: str = option(
        "auto",
        Declared(
            help="Where to train.",
            group=_COMPRESSION,
            commands=("build", "compress"),
            choices=("auto", "cpu", "cuda", "mps"),
        ),
    )
    processes: int = option(
        1,
        Declared(
            help="Processes on this machine that train together, each with a part of every batch.",
            group=_COMPRESSION,
            commands=("build", "compress"),
            metavar="N",
            minimum=1,
        ),
    )
    log: tuple[str, ...] = option(
        (),
        Declared(
            help="Training curves to tensorboard, mlflow or wandb.",
            group=_COMPRESSION,
            commands=("build", "compress"),
            metavar="NAME",
        ),
    )
    method: str = option(
        "auto",
        Declared(
            help="Range estimation: auto, minmax, percentile, entropy, mse …",
            group=_QUANTIZATION,
            commands=("build",),
            metavar="NAME",
        ),
    )
    exclude: tuple[str, ...] = option(
        (),
        Declared(
            help="Keep layers in float: a module path, node name or operator type.",
            group=_QUANTIZATION,
            commands=("build",),
            metavar="PATTERN",
        ),
    )
    int16: tuple[str, ...] = option(
        (),
        Declared(
            help="Give layers INT16 activations, where the runtime has them.",
            group=_QUANTIZATION,
            commands=("build",),
            metavar="PATTERN",
        ),
    )
    corrections: tuple[str, ...] = option(
        ("smooth", "bias", "gptq"),
        Declared(
            help="Weight corrections: auto, equalize, smooth, bias, gptq …",
            group=_QUANTIZATION,
            commands=("build",),
            flags=("--correct",),
            metavar="NAME",
        ),
    )
    metric: str = option(
        "",
        Declared(
            help="Your own task metric: (outputs, labels) → float.",
            group=_GATES,
            commands=("build",),
            metavar="FILE:CALLABLE",
        ),
    )
    max_drop: float | None = option(
        None,
        Declared(
            help="How far the task metric may fall below the reference's.",
            group=_GATES,
            commands=("build",),
            metavar="1%",
            fraction=True,
        ),
    )
    limit: Mapping[str, Option] = option(
        _NO_SETTINGS,
        Declared(
            help="A gate's limit in place of the target's: snr, slices, samples (dB), agreement, integers, boxes, "
            "masks, "
            "rollout, decisions, relative-error, placement, integer-weights, coverage, metric-drop, size (KB, MB), "
            "latency (ms), memory (MB).",
            group=_GATES,
            commands=("build",),
            metavar="NAME=VALUE",
        ),
    )
    strict: bool = option(
        False,
        Declared(
            help="Refuse what too few rows, or another processor than the target's, leave unproven.",
            group=_GATES,
            commands=("build", "compress"),
        ),
    )
    speed_gate: bool = option(
        True,
        Declared(
            help="Time INT8 artifacts against their fp32 siblings, and refuse slower ones (default: on).",
            group=_GATES,
            commands=("build",),
        ),
    )
    allow_not_run: bool = option(
        False,
        Declared(help="Accept artifacts that this machine cannot run.", group=_GATES, commands=("build",)),
    )
    timeout: int | None = option(
        None,
        Declared(
            help="Seconds for all of it; then what is at work is ended, and the exit code is 8.",
            help_for={
                "unpack": "Seconds for all of it (default: 60, and 120 for each MB of the container); then the exit "
                "code is 8."
            },
            group=_LIMITS,
            commands=("build", "compress", "verify", "diff", "unpack"),
            metavar="SECONDS",
            minimum=1,
        ),
    )
    memory: str = option(
        "",
        Declared(
            help="The most memory a process may take for a model that came as a file, like 8GB (default: 1.8 GiB and "
            "32 times the model's size).",
            group=_LIMITS,
            commands=("build", "compress", "verify", "diff", "unpack"),
            metavar="SIZE",
        ),
    )
    trust: bool = option(
        False,
        Declared(
            help="Allow sources that execute code when loaded (pickles).",
            help_for={"diff": "Execute the code of pickles, and of a received artifact's source."},
            group=_PERMISSIONS,
            commands=("build", "compress", "diff"),
            personal=True,
        ),
    )
    network: bool = option(
        False,
        Declared(
            help="Allow a source to download.", group=_PERMISSIONS, commands=("build", "compress", "diff")
        ),
    )

    def __post_init__(self) -> None:
        for name, field in declared_options(Options).items():
            value = getattr(self, name)
            if value is not None or field.default is not None:
                object.__setattr__(self, name, field.checked(value, where=name))

    def __repr__(self) -> str:
        """What differs from the defaults."""
        table = declared_options(Options)
        changed = [f"{n}={v!r}" for n in table if (v := getattr(self, n)) != table[n].default]
        return f"Options({', '.join(changed)})"

    @classmethod
    def load(cls, changes: Mapping[str, object] = _NOTHING, *, project: Path | None = None) -> Options:
        """The options in force: files, environment, then ``changes``; what they do not name has its default.

        Settings of the targets (``set``) and limits are merged by name; every other value replaces the one before.
        """
        values = _from_file(user_dir() / FILE)
        for layer in (of_project(project or Path.cwd()), _from_environment(), changes):
            for name in layer:
                find(cls, name, where="the options given")
            tables = {n: {**_mapping(values.get(n)), **_mapping(layer.get(n))} for n in ("set", "limit")}
            values = {**values, **layer, **{n: merged for n, merged in tables.items() if merged}}
        return cls(**values)  # type: ignore[arg-type]  # checked by __post_init__


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}


def target_options(target: Target, settings: Mapping[str, Option]) -> dict[str, Option]:
    """The target's own options: its defaults, overridden by the settings that it knows."""
    return _chosen(target.options, settings, where=target.name)


def build_settings(settings: Mapping[str, Option]) -> dict[str, Option]:
    """:data:`BUILD_SETTINGS`: their defaults, overridden by ``settings``."""
    chosen = _chosen(BUILD_SETTINGS, settings, where="build")
    if "pixels" in settings and not chosen["fold_preprocessing"]:
        raise ConfigError(
            f"pixels={settings['pixels']} is about models with their preprocessing folded in",
            hint="add --set fold_preprocessing=true, or leave pixels out",
        )
    return chosen


def _chosen(specs: Sequence[OptionSpec], settings: Mapping[str, Option], *, where: str) -> dict[str, Option]:
    chosen: dict[str, Option] = {}
    for spec in specs:
        value = settings.get(spec.name, spec.default)
        if isinstance(spec.default, str) and not isinstance(value, str):
            value = str(value)
        if not spec.takes(value):
            raise ConfigError(
                f"{where}: {spec.name}={str(value)[:40]} is not possible",
                hint=f"{spec.name} is {'one of: ' if spec.choices else ''}{spec.allowed}",
            )
        chosen[spec.name] = value
    return chosen


def refuse_unknown_settings(targets: Sequence[Target], settings: Mapping[str, Option]) -> None:
    """Every setting must be the build's, or an option of at least one of the targets."""
    known = {spec.name for t in targets for spec in t.options} | {spec.name for spec in BUILD_SETTINGS}
    for key in settings:
        if key not in known:
            raise UnknownNameError("setting", key, known, where=", ".join(t.name for t in targets))


def of_project(project: Path) -> dict[str, object]:
    """What the project's own file says, in the options' types. Raises :class:`ConfigError`."""
    values = _from_file(project / FILE) or _from_file(project / "pyproject.toml", "tool", "edgekit")
    for name, field in declared_options(Options).items():
        if field.declared.personal and values.get(name, False):
            raise _only_the_user(name, f"{project}: {name} = true")
    _refuse_elsewhere(values.get("out"), project)
    return values


def _refuse_elsewhere(out: object, project: Path) -> None:
    """What a project's file says is for its own folder: whoever stands in one has not read it."""
    if isinstance(out, Path) and not (project / out).resolve().is_relative_to(project.resolve()):
        raise ConfigError(
            f"{project}: out = {str(out)!r} is outside of the project",
            hint=f"pass --out {out} if that is where artifacts shall go",
        )


def _from_file(path: Path, *tables: str) -> dict[str, object]:
    if not path.is_file():
        return {}
    document: object = toml.read(path)
    for name in tables:
        document = _table(document, path).get(name, {})
    values = _table(document, path)
    return {
        name: find(Options, name, where=str(path)).from_toml(value, where=str(path))
        for name, value in values.items()
    }


def _table(document: object, path: Path) -> Mapping[str, object]:
    if not isinstance(document, Mapping):
        raise ConfigError(f"{path}: tool.edgekit is not a table", hint="write [tool.edgekit]")
    return document


def _from_environment() -> dict[str, object]:
    values: dict[str, object] = {}
    for name, field in declared_options(Options).items():
        text = os.environ.get(field.variable)
        if text and name not in CONTRACTS:
            values[name] = field.from_text(text, where=field.variable)
            if field.declared.personal and values[name]:
                raise _only_the_user(name, f"{field.variable}={text}")
    return values


def _only_the_user(name: str, where: str) -> ConfigError:
    return ConfigError(
        f"{where}: what allows a source to execute code is neither a project's nor the environment's to say",
        hint=f"pass --{name}, or put {name} = true into {user_dir() / FILE}, which is yours",
    )
