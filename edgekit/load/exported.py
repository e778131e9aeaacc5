"""``model.pt2``: a program saved by ``torch.export.save``.

``torch.export.load`` executes what a hostile archive tells it to: pickled weights, constants and sample
inputs, compiled libraries, symbolic expressions given to ``eval``, and operators looked up anywhere in the
``torch`` package. :func:`hazards` finds all of these by reading the archive; an archive made from plain
tensors and ATen operators has none and is loaded, any other needs ``--trust``.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import re
import shutil
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch

from edgekit.core.files import DAMAGED_ZIP, temporary
from edgekit.core.foreign import translated
from edgekit.errors import SourceError, UntrustedSourceError
from edgekit.graph.nested import Adapter, template, unique
from edgekit.load import module as modules
from edgekit.load.tensors import NotTensorsError, read_tensors
from edgekit.types import Json, Permit, SourceSpec, TorchModel

_OPERATOR = re.compile(
    r"torch\.ops\.\w+\.\w+(\.\w+)?|_operator\.\w+|math\.\w+|torch\.(_check\w*|sym_\w+|_sym_\w+)|torch\.ops\.higher_order\.\w+"
)
_SYMBOL = re.compile(r"Symbol\('[a-z]+\d+'(, \w+=(True|False))*\)")
_EXPRESSION_NAMES = {
    "Abs", "And", "CeilDiv", "CeilToInt", "CleanDiv", "Eq", "FloatTrueDiv", "FloorDiv", "FloorToInt", "Ge", "Gt",
    "Identity", "IntTrueDiv", "IsNonOverlappingAndDenseIndicator", "Le", "LShift", "Lt", "Max", "Min", "Mod",
    "ModularIndexing", "Mul", "Add", "Ne", "Not", "Or", "Pow", "PowByNatural", "PythonMod", "RShift", "RoundDecimal",
    "RoundToInt", "ToFloat", "TruncToFloat", "TruncToInt", "Where", "Integer", "Rational", "Float", "True", "False",
    "oo", "int_oo", "evaluate", "floor", "ceiling", "sqrt",
}  # fmt: skip
_MAX_DOCUMENT = 512 << 20
_LEAST_LIMIT = 4 << 30


def load(spec: SourceSpec, permit: Permit) -> TorchModel:
    """Load the program with its own example inputs and dynamic axes; see :func:`edgekit.load.load`."""
    assert spec.path is not None
    dangers = [] if permit.trust else hazards(spec.path)
    if dangers:
        raise UntrustedSourceError(
            f"loading {spec.path} would execute code from it: {'; '.join(dangers[:5])}",
            hint="pass --trust only if you made the file yourself or trust who did: it can then run any program",
        )
    with (
        translated(
            f"{spec.path} cannot be loaded",
            hint=f"save it again with torch.export.save and torch {torch.__version__}",
        ),
        _unlogged("torch.export"),
        contextlib.nullcontext(spec.path) if permit.trust else _as_it_was_read(spec.path) as path,
    ):
        program = torch.export.load(path)
        return from_program(program, spec.text)


@contextlib.contextmanager
def _as_it_was_read(path: Path) -> Iterator[Path]:
    """A copy of the archive that holds what :func:`hazards` has seen, and nothing else: PyTorch reads zip files with a
    library of its own, and where an archive is odd the two need not see the same entries."""
    with temporary("pt2") as folder, zipfile.ZipFile(path) as archive:
        copy = Path(folder) / "model.pt2"
        infos, most = archive.infolist(), max(_LEAST_LIMIT, 16 * path.stat().st_size)
        if sum(info.file_size for info in infos) > most:
            raise SourceError(
                f"{path} unpacks to more than {most >> 20} MB", hint="save it again with torch.export.save"
            )
        with zipfile.ZipFile(copy, "w", zipfile.ZIP_STORED) as written:
            for info in infos:
                with archive.open(info) as source, written.open(info.filename, "w", force_zip64=True) as sink:
                    shutil.copyfileobj(source, sink, 1 << 20)
        yield copy


@contextlib.contextmanager
def _unlogged(name: str) -> Iterator[None]:
    """Without what a library logs, tracebacks among it, before it raises the same."""
    logger = logging.getLogger(name)
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def from_program(program: torch.export.ExportedProgram, what: str) -> TorchModel:
    """A :class:`TorchModel` from a program; dynamic axes are those it was exported with."""
    if program.example_inputs is None:
        raise SourceError(f"{what} holds no example inputs", hint="export it again with torch.export.export")
    _refuse_training(program, what)
    args, kwargs = program.example_inputs
    inputs: dict[str, torch.Tensor] = {}

    def slots(value: object, name: str) -> object:
        form, tensors = template(value, unique(name, inputs))
        inputs.update(tensors)
        return form

    # An exported module takes its arguments in exactly the form of the export: by position or by name.
    names = _argument_names(program, len(args))
    form = tuple(slots(v, n) for n, v in zip(names, args, strict=True))
    called = Adapter(program.module(check_guards=False), form, {k: slots(v, k) for k, v in kwargs.items()})
    called.training = False
    model = modules.bind(called, inputs, what=what)
    return modules.complete(model, dynamic_axes=_dynamic_axes(program, tuple(model.example_inputs)))


def _argument_names(program: torch.export.ExportedProgram, count: int) -> Iterator[str]:
    signature = program.module_call_graph[0].signature if program.module_call_graph else None
    names = list(signature.forward_arg_names or []) if signature else []
    for index in range(count):
        yield names[index] if index < len(names) else f"input_{index}"


def _dynamic_axes(
    program: torch.export.ExportedProgram, inputs: tuple[str, ...]
) -> dict[str, dict[int, str]]:
    """Dynamic axes by input, named after the first input and axis that has each symbol."""
    placeholders = {n.name: n for n in program.graph.nodes if n.op == "placeholder"}
    labels: dict[str, str] = {}
    axes: dict[str, dict[int, str]] = {}
    for name, input_name in zip(program.graph_signature.user_inputs, inputs, strict=False):
        value = placeholders[str(name)].meta.get("val") if str(name) in placeholders else None
        for axis, size in enumerate(getattr(value, "shape", ())):
            if isinstance(size, int):
                continue
            label = labels.setdefault(str(size), "batch" if axis == 0 else f"{input_name}_axis{axis}")
            axes.setdefault(input_name, {})[axis] = label
    return axes


def _refuse_training(program: torch.export.ExportedProgram, what: str) -> None:
    for node in program.graph.nodes:
        name = str(node.target)
        dropout = "dropout" in name and len(node.args) > 2 and node.args[2] is True
        norm = "aten.batch_norm" in name and len(node.args) > 5 and node.args[5] is True
        if dropout or norm:
            raise SourceError(
                f"{what} was exported in training mode ({name})",
                hint="call module.eval() before torch.export.export",
            )


# --- hazards ------------------------------------------------------------------------------------------


def hazards(path: Path) -> list[str]:
    """What in an archive ``torch.export.load`` would execute, one sentence each; empty when nothing."""
    try:
        with zipfile.ZipFile(path) as archive:
            return list(dict.fromkeys(_hazards(archive)))
    except (*DAMAGED_ZIP, RecursionError) as error:
        raise SourceError(
            f"{path} is not a .pt2 archive: {error}", hint="save it with torch.export.save"
        ) from error


def _hazards(archive: zipfile.ZipFile) -> Iterator[str]:
    names = archive.namelist()
    for name, count in Counter(n.casefold() for n in names).items():
        if count > 1:  # zip libraries differ in which they take, and PyTorch's does not tell A from a
            yield f"it holds {name} {count} times"
    if not any(re.search(r"(^|/)models/[^/]+\.json$", n) for n in names):
        yield "it is of a format older than torch 2.8, which is a pickle"
        return
    for entry in archive.infolist():
        name = entry.filename.casefold()
        inner = name.partition("/")[2]
        if inner.startswith("data/aotinductor/") or name.endswith((".so", ".pyd", ".dll")):
            yield f"{name} is compiled code"
        elif inner.startswith("data/") and name.endswith(".pt"):
            if not _is_plain(archive.read(entry)):
                yield f"{name} holds pickled objects"
        elif name.endswith("_config.json"):
            yield from _payload_hazards(_document(archive, entry))
        elif inner.startswith("models/") and name.endswith(".json"):
            yield from _graph_hazards(_document(archive, entry), "")


def _document(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Json:
    if entry.file_size > _MAX_DOCUMENT:
        raise ValueError(f"{entry.filename} is larger than {_MAX_DOCUMENT >> 20} MB")
    document: Json = json.loads(archive.read(entry))
    return document


def _is_plain(data: bytes) -> bool:
    try:
        read_tensors(io.BytesIO(data))
    except NotTensorsError:
        return not data
    return True


def _payload_hazards(document: Json) -> Iterator[str]:
    for name, payload in _object(_object(document).get("config", {})).items():
        fields = _object(payload)
        path = str(fields.get("path_name", ""))
        if fields.get("use_pickle") or path.startswith(("custom_obj", "opaque_obj")):
            yield f"{name} is a pickled object"
        if ".." in path or path.startswith("/"):
            yield f"{name} is stored outside the archive's folder"


def _object(value: Json) -> Mapping[str, Json]:
    if not isinstance(value, Mapping):
        raise ValueError("its list of weights is malformed")  # noqa: TRY004 - the file is wrong, not a type of ours
    return value


def _graph_hazards(item: Json, key: str) -> Iterator[str]:
    """Strings that the loader looks up, evaluates or writes into generated code."""
    if isinstance(item, Mapping):
        for name, value in item.items():
            if name not in ("metadata", "doc_string"):
                yield from _graph_hazards(value, name)
    elif isinstance(item, str):
        if key == "target" and not _OPERATOR.fullmatch(item):
            yield f"the graph calls {item[:80]}"
        elif key == "expr_str" and not _is_arithmetic(item):
            yield f"a size is computed by {item[:80]!r}"
        elif key == "forward_arg_names" and not item.isidentifier():
            yield f"an argument is named {item[:80]!r}"
        elif key in ("in_spec", "out_spec") and re.search(r"[^\w\s.:,\"\\\[\]{}<>/-]", item):
            yield "its input structure has keys that are no plain names"
    elif isinstance(item, Sequence):
        for value in item:
            yield from _graph_hazards(value, key)


def _is_arithmetic(expression: str) -> bool:
    plain = _SYMBOL.sub("0", expression)
    words = re.findall(r"[A-Za-z_]\w*", plain)
    named = all(w in _EXPRESSION_NAMES or re.fullmatch(r"z?u?[fsu]\d+", w) for w in words)
    return named and re.fullmatch(r"[\w\s+\-*/%(),.<>=&|~]*", plain) is not None and "__" not in plain
