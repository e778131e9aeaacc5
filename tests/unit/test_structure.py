from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import pytest

from edgekit.core.structure import structure, to_builtins
from edgekit.errors import ConfigError, UnknownNameError


@dataclass(frozen=True, kw_only=True)
class Inner:
    depth: int = 0


@dataclass(frozen=True, kw_only=True)
class Outer:
    name: str
    inner: Inner = field(default_factory=Inner)
    many: tuple[Inner, ...] = ()
    maybe: Inner | None = None


def test_nested_dataclasses_are_built():
    made = structure(Outer, {"name": "a", "inner": {"depth": 2}, "many": [{"depth": 3}]}, where="t")
    assert made == Outer(name="a", inner=Inner(depth=2), many=(Inner(depth=3),))


@pytest.mark.parametrize(
    ("document", "place"),
    [
        ({"name": "a", "iner": {}}, "t"),
        ({"name": "a", "inner": {"dept": 1}}, "t: inner"),
        ({"name": "a", "many": [{"depth": 1}, {"dpth": 1}]}, "t: many[1]"),
        ({"name": "a", "maybe": {"depht": 1}}, "t: maybe"),
    ],
)
def test_an_unknown_key_names_the_place_and_the_nearest(document, place):
    with pytest.raises(UnknownNameError) as error:
        structure(Outer, document, where="t")
    assert place in error.value.message
    assert error.value.nearest


def test_a_wrong_type_says_where():
    with pytest.raises(ConfigError, match=r"t: .*int"):
        structure(Outer, {"name": "a", "inner": {"depth": "deep"}}, where="t")


def test_a_mapping_that_is_no_dict_has_a_plain_form():
    assert to_builtins(MappingProxyType({"a": (1, Path("b/c"))})) == {"a": (1, "b/c")}
