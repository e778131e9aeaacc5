"""A plan folder: the steps that were run, their structure, the weights. It is a source again.

``plan.json`` names code: the factory of the source that was compressed. A plan that was not written on this
machine is therefore loaded only when the user says that they trust it.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from edgekit.compress import arithmetic, made_from
from edgekit.compress.made_from import MadeFrom
from edgekit.compress.registry import from_options
from edgekit.compress.step import CompressionReport, Context, Scalar, Step, Tensors, options, rebuild
from edgekit.core import files
from edgekit.core.foreign import translated
from edgekit.core.store import Store
from edgekit.core.structure import structure
from edgekit.errors import ConfigError, SourceError, UntrustedSourceError
from edgekit.load import load as load_source
from edgekit.load import parse
from edgekit.types import Permit, SourceSpec, TorchModel, sha256_bytes, sha256_file

if TYPE_CHECKING:
    import torch

PLAN, WEIGHTS, TENSORS = "plan.json", "weights.safetensors", "plan.safetensors"
_VERSION = 1
_NOTE = "plan"
_MADE = "made_from"
_MOST_BYTES = 64 << 20


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What ``plan.json`` says. The ``origin``'s path is relative to ``folder`` where that is possible; ``report`` is
    that of the run, without times; ``files`` has the sha256 of each file of tensors; ``made`` the source's code and
    weights, ``None`` in a plan of an earlier version."""

    folder: Path
    steps: tuple[Step, ...]
    origin: SourceSpec
    report: CompressionReport
    files: Mapping[str, str] = field(default_factory=dict)
    made: MadeFrom | None = None

    @property
    def source(self) -> str:
        """The original source as the command line spells it, found from the plan's folder."""
        origin = self.origin
        if origin.path is None:
            return origin.text
        path = (self.folder / origin.path).resolve()
        try:
            text = str(path.relative_to(Path.cwd()))
        except ValueError:
            text = str(path)
        if origin.kind == "hf":
            return f"hf:{text}"
        return f"{text}:{origin.attribute}" if origin.kind == "factory" else text


def origin(spec: SourceSpec, folder: Path) -> SourceSpec:
    """How a plan in ``folder`` names the source ``spec``. Raises ``SourceError`` for what is no module."""
    if spec.kind in ("onnx", "savedmodel", "keras"):
        raise SourceError(
            f"{spec.text} is a graph, not a PyTorch module: steps have nothing to change in it",
            hint="give the factory of the module it was exported from; a graph can be quantized (edgekit build)",
        )
    if spec.path is None:
        return spec
    return replace(spec, path=Path(os.path.relpath(spec.path.resolve(), folder.resolve())))


def origin_record(spec: SourceSpec) -> dict[str, str]:
    """The source as ``plan.json`` has it: an empty path for one that is no file."""
    path = spec.path.as_posix() if spec.path is not None else ""
    return {"text": spec.text, "kind": spec.kind, "path": path, "attribute": spec.attribute}


def save(
    folder: Path,
    model: torch.nn.Module,
    steps: Sequence[Step],
    report: CompressionReport,
    context: Context,
    *,
    origin: SourceSpec | None = None,
    made: MadeFrom | None = None,
) -> None:
    """Write the plan: the recipe and report as JSON, the weights and what steps recorded as safetensors.

    The same recipe, seed and source give the same bytes: how long steps took is not written.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    state = {k: v.detach().cpu().contiguous().clone() for k, v in model.state_dict().items()}
    for name, tensors in ((WEIGHTS, state), (TENSORS, context.tensors)):
        with files.whole(folder / name) as temporary, files.system_errors():
            save_file(dict(sorted(tensors.items())), temporary)
    rows = [dataclasses.asdict(row) for row in report.steps]
    for row in rows:
        del row["seconds"]
    document: dict[str, object] = {
        "version": _VERSION,
        "seed": context.seed,
        "computed": dict(arithmetic.described()),
        "steps": [{"name": s.NAME, "options": options(s)} for s in steps],
        "report": {"metric": report.metric, "steps": rows},
        "files": {name: sha256_file(folder / name) for name in (TENSORS, WEIGHTS)},
    }
    if origin is not None:
        document["source"] = origin_record(origin)
    if made is not None:
        document[_MADE] = made.record()
    write_document(folder, document)


def write_document(folder: Path, document: Mapping[str, object]) -> None:
    """Write ``plan.json``, as a whole or not at all."""
    files.write(folder / PLAN, (json.dumps(document, indent=2, sort_keys=True) + "\n").encode())


def read_document(folder: Path) -> dict[str, object]:
    """``plan.json`` as it is. Raises ``ConfigError`` if there is none."""
    try:
        document = json.loads(files.read(folder / PLAN, most=_MOST_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise _no_plan(folder) from error
    if not isinstance(document, dict):
        raise _no_plan(folder)
    return document


def is_one(folder: Path) -> bool:
    """Whether ``folder`` holds a plan, whoever wrote it."""
    try:
        document = read_document(folder)
    except ConfigError:
        return False
    return {"version", "steps", "report"} <= set(document)


def load_steps(folder: Path) -> tuple[Step, ...]:
    """The recipe of a saved plan. Raises ``ConfigError`` if it is none, ``UnknownNameError`` for a step that is not
    installed."""
    try:
        rows = cast("list[dict[str, dict[str, Scalar]]]", read_document(folder)["steps"])
        pairs = [(str(row["name"]), dict(row["options"])) for row in rows]
    except (KeyError, TypeError, ValueError) as error:
        raise _no_plan(folder) from error
    return tuple(from_options(name, values) for name, values in pairs)


def read_report(folder: Path) -> CompressionReport:
    """What the run of a saved plan measured, without times."""
    where = str(folder / PLAN)
    return structure(CompressionReport, read_document(folder).get("report", {}), where=where)


def read(folder: Path) -> Plan:
    """The plan in ``folder``. Raises ``ConfigError``/``UnknownNameError`` if there is none that can be read."""
    document = read_document(folder)
    record = document.get("source")
    if not isinstance(record, dict):
        raise ConfigError(
            f"{folder / PLAN} does not say which source it is of",
            hint="compress with edgekit compress, or pass origin to save()",
        )
    path = record.pop("path", "")
    if not isinstance(path, str) or not path.isprintable():
        raise ConfigError(f"{folder / PLAN}: the source's path is none", hint="compress it again")
    source = structure(SourceSpec, record | {"path": path or None}, where=str(folder / PLAN))
    named = document.get("files")
    return Plan(
        folder=folder,
        steps=load_steps(folder),
        origin=source,
        report=read_report(folder),
        files={str(k): str(v) for k, v in named.items()} if isinstance(named, dict) else {},
        made=made_from.read(document[_MADE], where=str(folder / PLAN)) if _MADE in document else None,
    )


def remember(folder: Path, store: Store | None = None) -> None:
    """Note that this machine wrote the plan: it may name code here."""
    (store or Store()).remember(_NOTE, _identity(folder), True)


def load(spec: SourceSpec, permit: Permit) -> TorchModel:
    """The compressed model: the original source, each step's structure, then the weights.

    Raises ``UntrustedSourceError`` for a plan that is not from this machine unless ``trust``, and
    ``SourceError`` when the original source is gone, or is not the one that was compressed.
    """
    assert spec.path is not None
    plan = read(spec.path)
    if not permit.trust and not Store().recall(_NOTE, _identity(spec.path)):
        raise UntrustedSourceError(
            f"{spec.text} was not compressed on this machine, and names code to run: {plan.source}",
            hint="look at that code, then pass --trust",
        )
    original = parse(plan.source)
    model = load_source(original, trust=permit.trust, network=permit.network)
    if not isinstance(model, TorchModel):
        raise SourceError(f"{plan.source} is not a PyTorch module", hint="compress it again")
    notes = model.notes
    if plan.made is not None:
        made_from.check(plan.made, original, model.module, spec.text)
    else:
        notes = (
            *notes,
            f"{spec.text} does not say of which code and weights it was made: whether {plan.source} is still that was "
            "not checked; compress it again",
        )
    with translated(f"{spec.text} does not fit {plan.source}", hint="compress it again"):
        return replace(model, module=restore(model.module, plan), notes=notes)


def restore(module: torch.nn.Module, plan: Plan) -> torch.nn.Module:
    """Give a fresh module of the original source the plan's structure and weights."""
    return rebuilt(module, plan.steps, _tensors(plan, TENSORS), _tensors(plan, WEIGHTS))


def rebuilt(
    module: torch.nn.Module, steps: Sequence[Step], tensors: Tensors, weights: Tensors
) -> torch.nn.Module:
    """The same from what :func:`edgekit.compress.run.run` left in its context, and the weights in the end."""
    from edgekit.compress.constraints import believe

    for number, step in enumerate(steps):
        prefix = f"{number}/"
        own = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        module = rebuild(step, module, own, weights if number == len(steps) - 1 else None)
    believe(module)
    return module


def _tensors(plan: Plan, name: str) -> dict[str, torch.Tensor]:
    """Of the file that the plan was written with, which its report tells of."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = plan.folder / name
    try:
        if sha256_file(path) != plan.files.get(name):
            raise SourceError(
                f"{path} is not the file that {PLAN} was written with",
                hint="compress again: what the plan says of size and metric is not true of these weights",
            )
        loaded: dict[str, torch.Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise SourceError(f"{path} cannot be read: {error}", hint="compress again") from error
    return loaded


def _identity(folder: Path) -> str:
    """The plan, and the place of the code that it names: the same plan beside other code is somebody else's."""
    try:
        data = files.read(folder / PLAN, most=_MOST_BYTES)
        record = json.loads(data).get("source")
        path = record.get("path") if isinstance(record, dict) else None
        place = (folder / path).resolve() if isinstance(path, str) and path else Path.cwd()
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise _no_plan(folder) from error
    return sha256_bytes(data + b"\0" + os.fsencode(place))


def _no_plan(folder: Path) -> ConfigError:
    if (folder / PLAN).exists():
        return ConfigError(f"{folder} holds no compression plan: {PLAN} is damaged", hint="compress again")
    return ConfigError(f"{folder} holds no compression plan", hint=f"it needs a {PLAN}")
