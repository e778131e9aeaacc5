"""Names that tell who makes a file: what is swept, what is not, and who may read what was made."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgekit.core import files
from edgekit.errors import UsageError


@pytest.fixture
def dead() -> str:
    """The owner's part of a name, of a process that has ended."""
    script = "from edgekit.core import files; print(files.owner())"
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout.strip()


def test_what_the_dead_left_goes_and_nothing_else(tmp_path: Path, dead: str) -> None:
    number, began, space = files.owner().split(".")
    gone = [f".part-{dead}-ab", f"edgekit-run-{dead}-x1", f"ek-{dead}-q", f".run-{dead}"]
    gone.append(f".part-{number}.{int(began) - 1}.{space}-ab")  # the number is another process' now
    kept = [f".part-{files.owner()}-ab", ".part-12-ab", "edgekit-run-notes", f"{dead}", f"x.part-{dead}-ab"]
    kept.append(f".part-{dead.rpartition('.')[0]}.{'0' * 6}-ab")  # of another machine, and young
    for name in [*gone, *kept]:
        if name.startswith("edgekit"):
            (tmp_path / name).mkdir()
        else:
            (tmp_path / name).write_text("something")
    assert files.sweep(tmp_path) == len(gone)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(kept)
    assert files.sweep(tmp_path) == 0


def test_what_another_machine_makes_goes_after_a_week(tmp_path: Path, dead: str) -> None:
    name = tmp_path / f".part-{dead.rpartition('.')[0]}.{'0' * 6}-ab"
    name.write_text("")
    week = time.time() - 8 * 86400
    os.utime(name, (week, week))
    assert files.sweep(tmp_path) == 1


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give files away")
def test_what_another_user_left_is_theirs(tmp_path: Path, dead: str) -> None:
    (tmp_path / f".part-{dead}-ab").write_text("")
    os.chown(tmp_path / f".part-{dead}-ab", 12345, 12345)
    assert files.sweep(tmp_path) == 0


def test_links_are_not_followed(tmp_path: Path, dead: str) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("")
    (tmp_path / f".part-{dead}-ab").symlink_to(tmp_path / "precious")
    assert files.sweep(tmp_path) == 1
    assert (tmp_path / "precious" / "file").exists()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the system does not tell")
def test_one_that_was_killed_and_that_nobody_waits_for_is_dead() -> None:
    script = "import time; from edgekit.core import files; print(files.owner(), flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        name = f".part-{process.stdout.readline().strip()}-ab"
        assert files.alive(name)
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and stays a zombie
        assert not files.alive(name)


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077, 0o002])
def test_the_umask_holds(mask: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        files.write(tmp_path / "written", b"1")
        with files.whole(tmp_path / "private") as part:  # as safetensors does
            os.close(os.open(part, os.O_CREAT | os.O_WRONLY, 0o600))
        with files.scratch(tmp_path) as work:
            (work / "file").write_text("")
            files.publish(work, tmp_path / "folder")
    finally:
        os.umask(before)
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in tmp_path.rglob("*")}
    plain = 0o666 & ~mask
    assert modes == {"written": plain, "private": plain, "file": plain, "folder": 0o777 & ~mask}


def test_no_place_for_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(UsageError, match=r"\(TMPDIR\)"):
        files.temporary("test")


@pytest.mark.parametrize("make", ["link", "dangling", "pipe", "folder"])
@pytest.mark.parametrize("append", [False, True])
def test_what_is_no_file_of_ours_is_not_written_into(tmp_path: Path, make: str, append: bool) -> None:
    path, other = tmp_path / "log", tmp_path / "of-somebody"
    if make == "link":
        other.write_text("theirs")
    if make in ("link", "dangling"):
        path.symlink_to(other)
    elif make == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    with pytest.raises(OSError, match="log"):
        files.opened(path, append=append)
    assert not other.exists() or other.read_text() == "theirs"


def test_a_file_of_ours_is_written_anew_or_on(tmp_path: Path) -> None:
    for append in (False, True, False, True):
        with files.opened(tmp_path / "log", append=append) as file:
            file.write(b"a")
    assert (tmp_path / "log").read_bytes() == b"aa"


def test_a_folder_in_the_place_of_a_file_is_named_as_the_user_knows_it(tmp_path: Path) -> None:
    (tmp_path / "results.json").mkdir()
    with pytest.raises(IsADirectoryError) as raised:
        files.write(tmp_path / "results.json", b"{}")
    assert raised.value.filename == str(tmp_path / "results.json")
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


@pytest.mark.parametrize("link", [True, False])
def test_nothing_is_left_of_a_link_or_file_where_a_folder_appears(tmp_path: Path, link: bool) -> None:
    home, out = tmp_path / "home", tmp_path / "out"
    home.mkdir()
    (home / "mine").write_text("mine")
    out.mkdir()
    if link:
        (out / "target").symlink_to(home)
    else:
        (out / "target").write_text("old")
    with files.scratch(out) as work:
        (work / "new").write_text("new")
        files.publish(work, out / "target")
    assert [p.name for p in out.iterdir()] == ["target"]
    assert not (out / "target").is_symlink()
    assert (out / "target" / "new").read_text() == "new"
    assert (home / "mine").read_text() == "mine"


def _full(*names: Path) -> OSError:
    """As ``shutil.copyfile`` raises it: what is read is named first, what is written second."""
    first, *second = map(str, names)
    return OSError(errno.ENOSPC, "No space left on device", first, None, *second)


def test_of_a_copy_the_full_folder_is_named_not_what_is_read(tmp_path: Path) -> None:
    out = tmp_path / "disk" / "b"
    read = Path(files.tempfile.gettempdir()) / "cache" / "model.onnx"
    with pytest.raises(UsageError, match="cannot write to") as raised, files.scratch(out) as work:
        raise _full(read, work / "model.onnx")
    assert f"cannot write to {out}:" in raised.value.message
    assert list(tmp_path.iterdir()) == []  # nor the folders that were to hold it


def test_a_folder_that_was_there_stays_when_the_disk_is_full(tmp_path: Path) -> None:
    out = tmp_path / "b"
    out.mkdir()
    with pytest.raises(UsageError), files.scratch(out) as work:
        raise _full(work / "model.onnx")
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("how", ["put", "writing_to"])
def test_no_empty_folder_stays_of_a_file_for_which_there_was_no_room(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(path: Path, _: bytes) -> int:
        raise _full(path)

    monkeypatch.setattr(Path, "write_bytes", no_room)
    path = tmp_path / "new" / "deep" / "file"

    def written() -> None:
        if how == "put":
            files.put(path, b"1")
        with files.writing_to(path.parent):
            path.parent.mkdir(parents=True)
            path.write_bytes(b"1")

    with pytest.raises(UsageError, match=str(path.parent)):
        written()
    assert list(tmp_path.iterdir()) == []
