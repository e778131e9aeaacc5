"""Which source a plan was made from: its code and its weights, so that a build from the plan can tell another one.

A plan has its own weights, and takes the code from the source. Where that is no longer the source that was compressed,
"the source before the recipe" would be another model than the one that the plan's report compares with.

Comments, formatting, docstrings, what only a script does, and functions and imports that nothing of the source mentions
(data callables in the same file) are not the model: they may change.
"""

from __future__ import annotations

import ast
import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.core import files
from edgekit.core.structure import structure
from edgekit.errors import SourceError
from edgekit.types import SourceSpec, sha256_bytes

if TYPE_CHECKING:
    import torch

_MOST_BYTES = 16 << 20
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_IMPORTS = (ast.Import, ast.ImportFrom)


@dataclass(frozen=True, kw_only=True)
class Code:
    """A file: ``sha256`` of its bytes, ``meaning`` of what of it the model can use (the same for files that are no
    Python)."""

    sha256: str
    meaning: str


@dataclass(frozen=True, kw_only=True)
class MadeFrom:
    """``weights``: sha256 of the source's parameters and buffers; ``code``: the files, relative to the source's."""

    weights: str
    code: Mapping[str, Code]

    def record(self) -> dict[str, object]:
        """As ``plan.json`` has it."""
        return {"weights": self.weights, "code": {name: asdict(c) for name, c in self.code.items()}}


def of(spec: SourceSpec, module: torch.nn.Module, read: Iterable[str]) -> MadeFrom:
    """The identity of a source, of whose loading ``read`` are the files. Files elsewhere than at or below the source's
    folder are not looked at: in a copy of the project they may lie at another place."""
    folder = _folder(spec)
    names = {
        Path(os.path.relpath(name, folder)).as_posix()
        for name in map(os.path.realpath, read)
        if _counts(name, spec)
    }
    return MadeFrom(
        weights=_state(module), code=_code(spec, folder, {n for n in names if not n.startswith("../")})
    )


def read(record: object, *, where: str) -> MadeFrom:
    """What :meth:`MadeFrom.record` gave. Raises ``ConfigError`` for what is none."""
    return structure(MadeFrom, record, where=where)


def check(made: MadeFrom, spec: SourceSpec, module: torch.nn.Module, plan: str) -> None:
    """Raise ``SourceError`` where ``module``, just loaded from ``spec``, is not the source that the plan was made
    from. A file that is gone, and is not missed, was not the model's."""
    now = _code(spec, _folder(spec), made.code)
    changed = [
        name
        for name, code in now.items()
        if code.sha256 != made.code[name].sha256 and code.meaning != made.code[name].meaning
    ]
    what = f"its code changed ({', '.join(sorted(changed))})" if changed else ""
    if not what and _state(module) != made.weights:
        what = "its weights changed"
    if what:
        raise SourceError(
            f"{spec.text} is not the source that {plan} was made from: {what} since",
            hint="compress it again: the plan has the weights of then, and its report is of the model of then; or put "
            "the source back",
        )


def _folder(spec: SourceSpec) -> Path:
    if spec.path is None:
        return Path.cwd().resolve()
    path = spec.path.resolve()
    return path if path.is_dir() else path.parent


def _counts(name: str, spec: SourceSpec) -> bool:
    own = spec.path is not None and name == str(spec.path.resolve())
    return Path(name).is_file() and (name.endswith(".py") or own)


def _code(spec: SourceSpec, folder: Path, names: Iterable[str]) -> dict[str, Code]:
    trees: dict[str, ast.Module] = {}
    digests: dict[str, str] = {}
    for name in sorted(names):
        path = folder / name
        if Path(name).is_absolute() or ".." in Path(name).parts or not path.is_file():
            continue
        if not name.endswith(".py"):
            with path.open("rb") as file:
                digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
            continue
        data = files.read(path, most=_MOST_BYTES)
        digests[name] = sha256_bytes(data)
        try:
            trees[name] = ast.parse(data)
        except (SyntaxError, ValueError, RecursionError):
            continue
    kept = _kept(trees, set(spec.attribute.split(".")))
    return {name: Code(sha256=d, meaning=kept.get(name, d)) for name, d in digests.items()}


def _kept(trees: Mapping[str, ast.Module], mentioned: set[str]) -> dict[str, str]:
    """sha256 by file of all statements but plain ones (:func:`_plain`) that none of the others mention."""
    wanted: dict[int, ast.stmt] = {}
    waiting = {id(s): s for tree in trees.values() for s in tree.body}
    while True:
        more = {k: s for k, s in waiting.items() if not _plain(s) or _bound(s) & mentioned}
        if not more:
            break
        for key, statement in more.items():
            del waiting[key]
            wanted[key] = statement
            mentioned |= _names(statement)
    return {
        name: sha256_bytes(
            "\n".join(_dumped(s) for s in tree.body if id(s) in wanted).encode("utf-8", "replace")
        )
        for name, tree in trees.items()
    }


def _plain(statement: ast.stmt) -> bool:
    """What does nothing until its name is used, or is not run here at all. A decorator may keep a function under
    another name, and an import of all names binds what nobody sees."""
    if isinstance(statement, _FUNCTIONS):
        return not statement.decorator_list
    if isinstance(statement, ast.If):
        return ast.unparse(statement.test) in ("__name__ == '__main__'", "'__main__' == __name__")
    return isinstance(statement, _IMPORTS) and all(a.name != "*" for a in statement.names)


def _bound(statement: ast.stmt) -> set[str]:
    if isinstance(statement, _FUNCTIONS):
        return {statement.name}
    if isinstance(statement, _IMPORTS):
        return {a.asname or a.name.partition(".")[0] for a in statement.names}
    return set()


def _names(statement: ast.stmt) -> set[str]:
    """All that it mentions: names, attributes, imports, and words of texts (``getattr``, ``globals()``)."""
    names: set[str] = set()
    for node in ast.walk(statement):
        if isinstance(node, ast.Name):
            names.add(node.id)
        elif isinstance(node, ast.Attribute):
            names.add(node.attr)
        elif isinstance(node, ast.alias):
            names.update(node.name.split("."))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names.add(node.value)
    return names


def _dumped(statement: ast.stmt) -> str:
    for node in ast.walk(statement):
        if isinstance(node, (*_FUNCTIONS, ast.ClassDef)):
            node.body = [s for s in node.body if not _text(s)] or node.body[:1]
    return "" if _text(statement) else ast.dump(statement)


def _text(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


def _state(module: torch.nn.Module) -> str:
    """Of the tensors by name, each with its type and shape."""
    import torch

    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        if not isinstance(value, torch.Tensor):
            continue
        tensor = value.detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else b"")
    return digest.hexdigest()
