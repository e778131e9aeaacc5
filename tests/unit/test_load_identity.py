"""What a source is known by: what was read, wherever it lies."""

from __future__ import annotations

import json

import pytest

from edgekit.core import dependency
from edgekit.load.source import _without_place
from edgekit.types import SourceSpec


@pytest.fixture
def read(tmp_path):
    def written(folder, kind="plan", data=None, **changes):
        place = tmp_path / folder
        place.mkdir(exist_ok=True)
        source = {"text": "net.py:net", "kind": "factory", "path": f"/{folder}/net.py", "attribute": "net"}
        document = {"version": 1, "steps": [], "source": source, **changes}
        (place / "plan.json").write_text(json.dumps(document) if data is None else data)
        spec = SourceSpec(text="net.py:net", kind=kind, path=place)
        return _without_place(spec, dependency.of_path(str(place / "plan.json")))

    return written


def test_the_same_plan_elsewhere_is_the_same_source(read):
    assert read("one").sha256 == read("two").sha256
    assert read("one").sha256 != read("three", version=2).sha256
    assert read("one").sha256 != read("four", source={"text": "other.py:net", "path": "/one/net.py"}).sha256


def test_a_file_of_that_name_beside_another_source_counts_as_it_is(read):
    assert read("one", kind="factory").sha256 != read("two", kind="factory").sha256


@pytest.mark.parametrize("data", ["{", "[]", "{}", '{"source": 3}', "[" * 100_000])
def test_what_is_no_plan_counts_as_it_is(read, data, tmp_path):
    found = read("odd", data=data)
    assert found == dependency.of_path(str(tmp_path / "odd" / "plan.json"))
