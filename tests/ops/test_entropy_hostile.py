"""Containers of a few kilobytes that would take gigabytes, hours or the reader with them, and paths that cannot be."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest

from edgekit import entropy
from edgekit.cli import _output
from edgekit.core import contained
from edgekit.entropy import blocks, container, general
from edgekit.entropy.coding import Family, Part
from edgekit.entropy.forms import DTYPES, Form
from edgekit.entropy.groups import GroupCodec, encode
from edgekit.entropy.index import Block, FileEntry, Index, TensorEntry
from edgekit.entropy.wire import Writer
from edgekit.errors import ContainerError, MemoryLimitError, SourceError, UnknownNameError, UsageError

ROOT = Path(entropy.__file__).parents[2]


def constant(elements: int, codec: GroupCodec = GroupCodec.HUFFMAN) -> tuple[Block, bytes]:
    """A group of zeros, which takes a few bytes in the adaptive code."""
    zeros = np.zeros(elements, np.int64)
    data = encode(codec, [Part(magnitude=zeros, negative=zeros)], Family.INTEGER, 0, spread=1.0)
    return Block(raw=elements, size=len(data), crc=zlib.crc32(data), codec=codec), data


def tensor(name: str, elements: int, dtype: str = "int8", **fields: object) -> TensorEntry:
    fields = {"form": Form.PLAIN, "part": elements, "groups": (0,), **fields}
    return TensorEntry(name=name, dtype=DTYPES[dtype], shape=(elements,), gap=0, **fields)  # type: ignore[arg-type]


def copy(name: str, elements: int, source: int, dtype: str = "int8") -> TensorEntry:
    return tensor(name, elements, dtype, form=Form.COPY, source=source, part=0, groups=())


def write(
    path: Path,
    tensors: list[TensorEntry],
    groups: list[tuple[Block, bytes]],
    *,
    content: bytes | None = None,
    names: tuple[str, ...] = ("x",),
) -> Path:
    """A container of one file of tensors, or of empty files where there is none; all of it zeros."""
    total = sum(t.size for t in tensors)
    content = bytes(total) if content is None and total < 1 << 24 else content or b""
    digest = hashlib.sha256(content).digest()[:16]
    index = Index(
        single=len(names) == 1 and names[0] == "x",
        files=tuple(FileEntry(path=n, size=total, digest=digest, tensors=len(tensors)) for n in names),
        tensors=tuple(tensors),
        groups=tuple(block for block, _ in groups),
        chunks=(),
    ).to_bytes()
    codec, first = general.encode(index, (general.Codec.LZMA,))
    head = Writer()
    head.data += container.MAGIC
    for value in (codec, len(first), len(index), len(index)):
        head.uint(value)
    head.data += zlib.crc32(first).to_bytes(4, "little")
    path.write_bytes(bytes(head.data) + first + b"".join(data for _, data in groups))
    return path


def edgekit(*argv: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edgekit", *map(str, argv)],
        cwd=cwd, capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "EDGEKIT_CACHE": str(cwd / "cache"), "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def test_a_chain_of_copies_is_read_in_linear_time(tmp_path: Path) -> None:
    many = 20_000
    tensors = [tensor("a", 1), *(copy("", 1, source) for source in range(many - 1))]
    path = write(tmp_path / "chain.ekz", tensors, [constant(1)])
    begin = time.process_time()
    assert entropy.unpack(path, tmp_path / "out").path.read_bytes() == bytes(many)
    assert time.process_time() - begin < 30  # each of them through all before it: minutes


def test_parts_of_nothing_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "x.ekz", [tensor("a", 1, groups=(0,) * 5000)], [constant(1)])
    with pytest.raises(ContainerError, match="part of nothing"):
        entropy.open(path)
    path = write(tmp_path / "y.ekz", [tensor("a", 6, "uint4", part=3, groups=(0, 0))], [constant(6)])
    with pytest.raises(ContainerError, match="within a byte"):
        entropy.open(path)


@pytest.mark.parametrize(
    "name", ["a" * 256, "é" * 128, "/".join("a" * 65), "/".join(["a"] * 2000), "b" * 4097]
)
def test_names_that_no_file_can_have_are_refused(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "x.ekz", [], [], names=(name,))
    with pytest.raises(ContainerError) as caught:
        entropy.open(path)
    assert len(caught.value.message) < 600


def test_a_folder_as_deep_as_it_may_be(tmp_path: Path) -> None:
    name = "/".join(["é" * 20] * 64)
    path = write(tmp_path / "x.ekz", [], [], names=(name, "other"))
    assert (entropy.unpack(path, tmp_path / "out").path / name).is_file()


def test_names_that_cannot_be_unpacked_are_not_packed(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a:b").write_bytes(b"1")
    with pytest.raises(SourceError, match="a:b"):
        entropy.pack(tmp_path / "d", tmp_path / "d.ekz")


@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_a_tensor_is_written_piece_by_piece(tmp_path: Path, dtype: str) -> None:
    part, count = 1 << 13, 48
    tensors = [tensor("t", part * count + 1, dtype, part=part, groups=tuple(range(count + 1)))]
    path = write(tmp_path / "x.ekz", tensors, [constant(part)] * count + [constant(1)])
    with entropy.open(path) as c:
        whole = c["t"]
    tracemalloc.start()
    entropy.write_tensor(path, "t", tmp_path / "new" / "t.npy")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.save(tmp_path / "whole.npy", whole)
    assert (tmp_path / "new" / "t.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()
    assert peak < 64 * part * count // 2


def test_a_copy_of_another_type(tmp_path: Path) -> None:
    tensors = [tensor("a", 6, part=3, groups=(0, 1)), copy("b", 3, 0, "int16"), copy("c", 12, 0, "int4")]
    path = write(tmp_path / "x.ekz", tensors, [constant(3), constant(3)])
    with entropy.open(path) as c:
        assert c["b"].tolist() == [0] * 3
        assert c["c"].tolist() == [0] * 12


def test_bits_outside_of_a_copy_are_refused(tmp_path: Path) -> None:
    tensors = [tensor("a", 1, "uint8", shift=255), copy("b", 1, 0, "int4")]
    path = write(tmp_path / "x.ekz", tensors, [constant(1)], content=b"\xff\xff")
    assert entropy.unpack(path, tmp_path / "out").size == 2
    with entropy.open(path) as c, pytest.raises(ContainerError, match="outside its elements"):
        c["b"]


def test_more_than_a_file_of_its_size_holds_is_refused(tmp_path: Path) -> None:
    group, many = constant(1 << 16, GroupCodec.ADAPTIVE), 1 << 13
    tensors = [tensor("big", many << 16, "float32", part=1 << 16, groups=tuple(range(many)))]
    path = write(tmp_path / "big.ekz", tensors, [group] * many)
    for attempt in (
        lambda: entropy.unpack(path, tmp_path / "out"),
        lambda: entropy.write_tensor(path, "big", tmp_path / "out"),
        lambda: entropy.open(path)["big"],
    ):
        with pytest.raises((ContainerError, MemoryLimitError), match=r"limit of|free memory"):
            attempt()
    assert [p.name for p in tmp_path.iterdir()] == ["big.ekz"]
    assert container.usual_output(100) == 1 << 30
    assert container.usual_output(1 << 40) == container.MAX_OUTPUT


def test_a_tensor_that_does_not_fit_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "x.ekz", [tensor("a", 100, "float32")], [constant(100)])
    monkeypatch.setattr(container, "available_memory", lambda: 399)
    with entropy.open(path) as c, pytest.raises(MemoryLimitError, match="free memory"):
        c["a"]
    entropy.write_tensor(path, "a", tmp_path / "a.npy")


def test_groups_are_not_kept_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each group is needed again by a later copy: they are decoded again where there is no room."""
    monkeypatch.setattr(blocks, "_KEPT_BYTES", 1 << 16)
    monkeypatch.setattr(blocks, "_KEPT_SIZES", 0)
    size, many = 1 << 13, 40
    tensors = [tensor(f"t{i}", size, groups=(i,)) for i in range(many)]
    tensors += [copy(f"c{i}", size, i) for i in range(many)]
    path = write(tmp_path / "kept.ekz", tensors, [constant(size)] * many)
    held = []
    with entropy.open(path) as c:
        for _, pieces in c.files():
            held += [c._blocks._held for _ in pieces]
        assert c._blocks._held == 0
    assert len(held) == 2 * many
    assert 1 << 14 < max(held) <= 1 << 16


def test_a_chain_of_palettes_is_refused(tmp_path: Path) -> None:
    ranked = [tensor(f"t{i}", 4, "uint8", form=Form.RANKED, source=i) for i in range(3)]
    path = write(tmp_path / "x.ekz", [tensor("a", 4, "uint8"), *ranked], [constant(16)])
    with pytest.raises(ContainerError, match="palette itself"):
        entropy.open(path)
    through = [tensor("a", 4, "uint8"), ranked[0], copy("c", 4, 1, "uint8")]
    through += [tensor("d", 4, "uint8", form=Form.RANKED, source=2)]
    with pytest.raises(ContainerError, match="palette itself"):
        entropy.open(write(tmp_path / "y.ekz", through, [constant(12)]))
    path = write(tmp_path / "z.ekz", [tensor("a", 4, "uint8"), *(t for t in ranked[:1] * 6)], [constant(28)])
    assert entropy.unpack(path, tmp_path / "out").size == 28


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        ("int8", (0, 2**62 - 1, 2**63 - 5, 2**63 + 2**62 - 10)),
        ("int8", (-129, 1)),
        ("uint16", (-1, 0)),
        ("int32", (0, 2**31)),
        ("float16", (0, 2**15)),
    ],
)
def test_values_that_do_not_fit_their_type_are_refused(
    tmp_path: Path, dtype: str, values: tuple[int, ...]
) -> None:
    entry = tensor("a", 1, dtype, form=Form.CLUSTERED, book=len(values), values=values)
    with pytest.raises(ContainerError, match="does not fit"):
        entropy.open(write(tmp_path / "x.ekz", [entry], [constant(1)]))


def test_large_tensors_of_four_bits_survive(tmp_path: Path) -> None:
    """657 rows of 797 columns would be a part, and end within a byte."""
    rng = np.random.default_rng(3)
    data = rng.integers(0, 256, (700 * 797 + 1) // 2, np.uint8)
    xml = (
        '<net><layer id="0" name="w" type="Const" version="opset1">\n'
        f'<data element_type="u4" shape="700, 797" offset="0" size="{len(data)}" /></layer></net>'
    )
    data[-1] &= 15
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "m.bin").write_bytes(data.tobytes())
    (folder / "m.xml").write_text(xml)
    entropy.pack(folder, tmp_path / "m.ekz", coder="huffman")
    assert (
        entropy.unpack(tmp_path / "m.ekz", tmp_path / "out").path / "m.bin"
    ).read_bytes() == data.tobytes()


def test_what_takes_too_long_is_ended(tmp_path: Path) -> None:
    size, many = 1 << 17, 200
    group = constant(size, GroupCodec.ADAPTIVE)
    tensors = [tensor("a", size * many, part=size, groups=tuple(range(many)))]
    write(tmp_path / "slow.ekz", tensors, [group] * many)
    done = edgekit("unpack", "slow.ekz", "--timeout", 2, cwd=tmp_path)
    assert done.returncode == 8, done.stderr
    assert "slow.ekz" in done.stderr
    assert "--timeout" in done.stderr
    assert [p.name for p in tmp_path.iterdir() if p.name != "cache"] == ["slow.ekz"]


def test_what_says_nothing_does_not_look_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only bytes of the file count as progress, each once."""
    beats: list[int] = []
    monkeypatch.setattr(contained, "beat", lambda: beats.append(1))
    tensors = [tensor(f"t{i}", 64, groups=(i,)) for i in range(20)]
    with entropy.open(write(tmp_path / "x.ekz", tensors, [constant(64)] * 20)) as c:
        for _ in range(3):
            assert len(c["t3"]) == 64
    assert beats == []


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    write(folder / "noending", [tensor("a", 1)], [constant(1)])
    return write(
        folder / "x.ekz", [tensor("a", 1), tensor("b" * 300, 1), tensor("\x1b[31m", 1)], [constant(3)]
    )


@pytest.mark.parametrize("typed", [
    "pack .", "pack ..", "pack /", "unpack .", "unpack ..", "unpack /", "unpack noending", "unpack LONG",
    "pack LONG", "pack x.ekz --out LONG", "unpack x.ekz --out LONG", "unpack x.ekz --out x.ekz/y",
    "unpack x.ekz --out /proc/xx", "unpack x.ekz --tensor a --out /proc/xx", "unpack x.ekz --tensor a --out .",
    "unpack x.ekz --tensor a --out x.ekz/y", "pack x.ekz --out /proc/xx", "pack x.ekz --out .",
    "unpack /proc/self/mem --out y", "unpack /proc/self/mem", "unpack /dev/null",
])  # fmt: skip
def test_paths_that_cannot_be_are_typed_errors(
    small: Path, typed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from click.testing import CliRunner

    from edgekit.cli import cli  # a command called alone would remember another help option

    monkeypatch.chdir(small.parent)
    before = small.read_bytes(), (small.parent / "noending").read_bytes()
    words = typed.replace("LONG", "a" * 300).split()
    with pytest.raises((UsageError, SourceError)) as caught:
        CliRunner().invoke(cli, words, catch_exceptions=False, standalone_mode=False)
    named = [word.partition("/y")[0] for word in words[1:] if not word.startswith("--")]
    assert any(word in caught.value.message for word in named)
    assert before == (small.read_bytes(), (small.parent / "noending").read_bytes())


def test_a_disk_that_does_not_read(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with entropy.open(small) as c:

        class Broken:
            name = str(small)

            def seek(self, offset: int) -> None:
                raise OSError(5, "Input/output error")

        monkeypatch.setattr(c._blocks, "_file", Broken())
        with pytest.raises(SourceError, match=r"cannot read .*x\.ekz: Input/output error"):
            c["a"]


def test_names_reach_no_terminal(small: Path, tmp_path: Path) -> None:
    done = edgekit("unpack", small, "--tensor", "\x1b[31m", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    assert (tmp_path / "\x1b[31m.npy").is_file()
    done = edgekit("unpack", small, "--tensor", "b" * 300, cwd=tmp_path)
    assert done.returncode == 2
    assert "--out" in done.stderr
    assert (
        edgekit("unpack", small, "--tensor", "b" * 300, "--out", "no/such/b.npy", cwd=tmp_path).returncode
        == 0
    )


def test_many_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = [tensor("a", 1), *(copy(f"{i}" + "n" * 300, 1, 0) for i in range(200))]
    path = write(tmp_path / "x.ekz", tensors, [constant(1)])
    with entropy.open(path) as c, pytest.raises(UnknownNameError) as caught:
        c["zz"]
    assert len(caught.value.hint) < 20_000
    assert "more" in caught.value.hint
    rows = [(f"t{i}\x1b", "int8") for i in range(_output._MANY_ROWS + 1)]
    _output.table("tensors", ("name", "dtype"), rows)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(rows) + 1
    assert lines[0].split() == ["name", "dtype"]
    assert lines[1].split() == ["t0�", "int8"]
