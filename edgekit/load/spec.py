"""What a SOURCE argument means. Light: looks at names and files, imports and executes nothing."""

from __future__ import annotations

from pathlib import Path

from edgekit.errors import SourceError
from edgekit.load.usercode import missing, split
from edgekit.types import SourceSpec

_SUFFIXES = {
    ".pt2": "pt2",
    ".onnx": "onnx",
    ".pt": "pt",
    ".pth": "pt",
    ".bin": "pt",
    ".keras": "keras",
    ".h5": "keras",
    ".hdf5": "keras",
    ".gguf": "gguf",
}
_SHOWN = 200
_FORMS = (
    "a source is file.py:factory, package.module:factory, model.pt2, model.onnx, hf:DIR, "
    "model.gguf, a SavedModel directory, a .keras/.h5 file, or a directory that edgekit compress wrote"
)


def parse(text: str) -> SourceSpec:
    """Find out what kind of source ``text`` names.

    Raises :class:`SourceError` when a file is missing (offering its neighbours) or the form is unknown.
    """
    if not text.strip():
        raise SourceError("the source is empty", hint=_FORMS)
    try:
        return _parsed(text)
    except (OSError, ValueError) as error:  # a name that no file can have, a folder that may not be read
        why = getattr(error, "strerror", None) or str(error)
        raise SourceError(f"{_cut(text)}: {why}", hint="check the name of the source") from error


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}… ({len(text):,} characters)"


def _parsed(text: str) -> SourceSpec:
    if text.startswith("hf:"):
        return _huggingface(text)
    parts = split(text)
    if parts is not None:
        where, name = parts
        path = _existing(Path(where), text) if where.endswith(".py") else None
        return SourceSpec(text=text, kind="factory", path=path, attribute=name)
    path = Path(text)
    if path.is_dir():
        return _directory(text, path)
    if path.suffix == ".py":
        _existing(path, text)
        raise SourceError(
            f"{text} names a file but no factory in it", hint=f"write {text}:NAME, NAME a function in it"
        )
    if path.suffix.lower() in _SUFFIXES:
        return SourceSpec(text=text, kind=_SUFFIXES[path.suffix.lower()], path=_existing(path, text))
    if path.suffix == ".safetensors":
        raise SourceError(
            f"{text} holds weights without a model",
            hint="write a factory that builds the module and loads them",
        )
    if not path.exists():
        raise _nothing_there(path, text)
    raise SourceError(f"{text} is no kind of source that edgekit knows", hint=_FORMS)


def _huggingface(text: str) -> SourceSpec:
    name = text.removeprefix("hf:")
    path = Path(name)
    if not name:
        raise SourceError(
            "hf: names no directory", hint="write hf:DIR with a directory that holds config.json"
        )
    if path.is_dir():
        return SourceSpec(text=text, kind="hf", path=_existing(path / "config.json", text).parent)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise _nothing_there(path, text)
    return SourceSpec(text=text, kind="hf", attribute=name)  # a hub name: needs the network or its cache


def _directory(text: str, path: Path) -> SourceSpec:
    if (path / "saved_model.pb").is_file():
        return SourceSpec(text=text, kind="savedmodel", path=path)
    if (path / "plan.json").is_file():
        return SourceSpec(text=text, kind="plan", path=path)
    if (path / "config.json").is_file():
        raise SourceError(f"{text} looks like a Hugging Face model", hint=f"write hf:{text}")
    models = sorted(p.name for p in path.iterdir() if p.suffix.lower() in _SUFFIXES)
    raise SourceError(
        f"{text} is a directory, but not a SavedModel (no saved_model.pb)",
        hint=f"name one of its files: {', '.join(models)}" if models else _FORMS,
    )


def _existing(path: Path, text: str) -> Path:
    if not path.is_file():
        raise _nothing_there(path, text)
    return path


def _nothing_there(path: Path, text: str) -> SourceError:
    parent = path.parent
    if not parent.is_dir():
        return SourceError(f"{text}: there is no directory {parent}", hint="check the path")
    if path.is_symlink() or path.exists():
        what = (
            "a directory" if path.is_dir() else "a pipe or a device" if path.exists() else "a link to nothing"
        )
        return SourceError(f"{path} is {what}, not a file", hint="name the model's file")
    near = [p.name for p in parent.iterdir() if not p.name.startswith(".")]
    there = "" if text == str(path) else f"{text}: "
    return missing(f"{there}there is no {path}", path.name, near[:1000])
