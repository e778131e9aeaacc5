"""Whatever finds itself by its path or by a module's name finds the right thing: each fails when a module is moved."""

from __future__ import annotations

import importlib.util
import re
import sys
import tomllib
import zipfile
from io import BytesIO
from pathlib import Path

import pytest

import edgekit
from edgekit.core import plugins, versions
from edgekit.core.root import PACKAGE
from edgekit.devices import pack
from edgekit.devices.transports import ssh
from edgekit.load import Recorder, imports, usercode, watch

TREE = Path(__file__).parents[2]


def exists(module: str) -> bool:
    """Whether there is such a module, found without importing it."""
    path = TREE.joinpath(*module.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def test_the_package_is_the_folder_that_holds_all_rooms() -> None:
    assert PACKAGE == TREE / "edgekit"
    assert (PACKAGE / "py.typed").is_file()


def test_the_code_version_changes_with_a_file_of_any_room(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A version over fewer files would serve results of older code from the cache; no step runs the rooms above."""
    for path in PACKAGE.rglob("*.py"):
        copy = tmp_path / path.relative_to(PACKAGE)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    monkeypatch.setattr(versions, "PACKAGE", tmp_path)
    versions.code.cache_clear()
    try:
        before, whole = versions.code(), versions.code(above=True)
        monkeypatch.undo()
        versions.code.cache_clear()
        assert versions.code() == before, "it is not over the package's own files"
        monkeypatch.setattr(versions, "PACKAGE", tmp_path)
        rooms = sorted(p for p in tmp_path.iterdir() if p.is_dir() and p.name != "__pycache__")
        assert len(rooms) > 10
        for path in [tmp_path / "types.py", *(next(iter(sorted(room.rglob("*.py")))) for room in rooms)]:
            versions.code.cache_clear()
            path.write_bytes(path.read_bytes() + b"# changed\n")
            steps = path.relative_to(tmp_path).parts[0] not in versions.ABOVE
            assert (versions.code() != before) is steps, path
            assert versions.code(above=True) != whole, path
            before, whole = versions.code(), versions.code(above=True)
    finally:
        monkeypatch.undo()
        versions.code.cache_clear()


def test_a_users_traceback_shows_no_file_of_edgekit(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("def factory():\n    raise KeyError('mine')\n")
    with pytest.raises(Exception, match="mine") as caught:
        usercode.run(f"{tmp_path / 'broken.py'}:factory", lambda value: value())  # type: ignore[operator]
    trace = caught.value.user_traceback
    assert "broken.py" in trace
    files = re.findall(r'File "([^"]+)"', trace)
    assert not [f for f in files if Path(f).is_relative_to(PACKAGE)], trace


def test_a_folder_whose_name_begins_like_the_packages_is_the_users() -> None:
    """Taken for edgekit's own, the user's code would vanish from tracebacks, and its reads from records."""
    file = f"{PACKAGE}-models/model.py"
    names = {"reader": watch._reader}
    exec(compile("result = reader()", file, "exec"), names)
    assert names["result"] is watch._Reader.USER  # type: ignore[comparison-overlap]
    with pytest.raises(KeyError) as caught:
        exec(compile("raise KeyError('mine')", file, "exec"))
    assert file in usercode.user_traceback(caught.value)


def test_edgekits_own_files_are_no_dependencies_of_a_source(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("a")
    with Recorder() as recorder:
        (tmp_path / "mine.txt").read_text()
        (PACKAGE / "types.py").read_text()
    names = {Path(d.name).name for d in recorder.dependencies}
    assert "mine.txt" in names
    assert "types.py" not in names
    assert not imports.is_users(str(PACKAGE / "load" / "record.py"))


def test_what_looks_for_modules_is_named_by_its_file() -> None:
    assert str(Path(usercode.__file__).resolve()) in watch._IMPORTERS


def test_targets_and_devices_are_found() -> None:
    assert (plugins.data_dir() / "targets" / "tflite" / "target.toml").is_file()
    assert (plugins.data_dir() / "devices").is_dir()
    assert plugins.builtin.data == plugins.data_dir() / "targets"


def test_the_scripts_for_the_remote_side_are_found() -> None:
    source = Path(ssh.__file__).read_text(encoding="utf-8")
    scripts = re.findall(r'_script\("(\w+)"\)', source)
    assert len(scripts) >= 4
    assert [s for s in scripts if not (ssh._REMOTE / f"{s}.py").is_file()] == []


def test_the_agent_carries_its_whole_core() -> None:
    files = set(zipfile.ZipFile(BytesIO(pack.pack("onnxruntime").content)).namelist())
    core = {f"edgekit_agent/{path.name}" for path in (PACKAGE / "devices" / "agent").glob("*.py")}
    assert len(core) > 5
    assert core <= files
    assert "edgekit_agent/runner.py" in files


def test_module_names_in_strings_are_modules() -> None:
    """Of plug-ins, loaders, backends' members, TensorFlow's worker, and whoever else names a module as text."""
    named: dict[str, str] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        for text in re.findall(r'"(edgekit(?:\.\w+)+)"', path.read_text(encoding="utf-8")):
            top = text.split(".")[1]
            if (PACKAGE / top).is_dir() or (PACKAGE / f"{top}.py").is_file():
                named.setdefault(text, path.name)
    assert len(named) > 25
    assert {name: file for name, file in named.items() if not exists(name)} == {}
    assert "edgekit.load.tensorflow_worker" in named


def test_every_module_of_the_builtin_plugin_exists() -> None:
    kinds = [v for v in vars(plugins.builtin).values() if isinstance(v, dict)]
    modules = [name for kind in kinds for name in kind.values()]
    assert len(modules) > 15
    assert [name for name in modules if not exists(name)] == []


def test_public_names_can_be_imported() -> None:
    for name in edgekit.__all__:
        assert getattr(edgekit, name) is not None


def test_entry_points_and_the_version_of_the_wheel_are_found() -> None:
    document = tomllib.loads((TREE / "pyproject.toml").read_text(encoding="utf-8"))
    project = document["project"]
    targets = [*project["scripts"].values(), *project["entry-points"]["edgekit.plugins"].values()]
    assert [target for target in targets if not exists(target.partition(":")[0])] == []
    version = document["tool"]["hatch"]["version"]
    assert re.search(version["pattern"], (TREE / version["path"]).read_text(encoding="utf-8"))


def test_the_program_can_be_run_as_a_module() -> None:
    assert importlib.util.find_spec("edgekit.__main__") is not None
    assert "edgekit" in sys.modules
