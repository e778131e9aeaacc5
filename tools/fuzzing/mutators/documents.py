"""JSON values: of another type, at an edge, missing, twice, somebody else's, nested without end."""

from __future__ import annotations

import copy
import json
import math
import random
from collections.abc import Iterator

from fuzzing import values

Key = str | int


def mutate(rng: random.Random, document: object, most: int = 3) -> object:
    """A few changes at any depth of a document of dicts, lists and scalars."""
    document = _copy(document)
    for _ in range(rng.choice((1, 1, most))):
        places = list(_places(document))
        if not places:
            return _leaf(rng, document)
        holder, key = rng.choice(places)
        _change(rng, holder, key, places)
    return document


def _places(value: object) -> Iterator[tuple[dict | list, Key]]:
    todo = [value]
    while todo:
        holder = todo.pop()
        items = (
            holder.items()
            if isinstance(holder, dict)
            else enumerate(holder)
            if isinstance(holder, list)
            else ()
        )
        for key, item in items:
            yield holder, key
            todo.append(item)


def _change(rng: random.Random, holder: dict | list, key: Key, places: list[tuple[dict | list, Key]]) -> None:
    value = holder[key]
    match rng.randrange(10):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, dict):
            holder[rng.choice((str(key) + "x", values.text(rng)))] = holder.pop(key)
        case 1 | 2 if isinstance(holder, list):
            holder[key:key] = [_copy(value)] * rng.choice((1, 1, 2, 50))
        case 3:
            there, where = rng.choice(places)
            holder[key] = _copy(there[where]) if _has(there, where) else None
        case 4:
            holder[key] = [value] if rng.random() < 0.5 else {"x": value}
        case 5:
            holder[key] = _deep(rng.choice((3, 60, 2000)))
        case _:
            holder[key] = _leaf(rng, value)


def _copy(value: object) -> object:
    try:
        return copy.deepcopy(value)
    except RecursionError:
        return None


def _has(holder: dict | list, key: Key) -> bool:
    return key in holder if isinstance(holder, dict) else isinstance(key, int) and key < len(holder)


def _leaf(rng: random.Random, value: object) -> object:
    if isinstance(value, bool):
        return rng.choice((not value, None, 1, "true", []))
    if isinstance(value, int | float) and rng.random() < 0.7:
        return values.changed_number(rng, value)
    if isinstance(value, str) and rng.random() < 0.7:
        return rng.choice((values.text(rng), value + values.text(rng), value[:-1], value * 2, value.upper()))
    if isinstance(value, list) and rng.random() < 0.5:
        return rng.choice(([], value * 2, value[:1], value[::-1]))
    kinds = (
        None,
        True,
        False,
        [],
        {},
        [[]],
        "",
        values.number(rng),
        rng.choice(values.FLOATS),
        values.text(rng),
    )
    return rng.choice(kinds)


def _deep(levels: int) -> object:
    value: object = 1
    for level in range(levels):
        value = [value] if level % 2 else {"a": value}
    return value


def dump(rng: random.Random, document: object) -> bytes:
    """The document as JSON, sometimes with a key twice, a huge number or a broken end."""
    text = _text(document)
    match rng.randrange(24):
        case 0:
            text = text.replace('":', '":1e999,"x":', 1)
        case 1 if text.startswith("{"):
            text = text[:-1] + "," + text[1:] if len(text) > 2 else text
        case 2:
            text = text[: rng.randrange(len(text) + 1)]
        case 3:
            text = "\ufeff" + text
        case 4:
            text = text.replace("1", "9" * 5000, 1)
    return text.encode("utf-8", "surrogatepass")


def _text(value: object) -> str:
    """JSON without Python's limit on nesting; what is no number there is written as a word."""
    parts: list[str] = []
    stack: list[object] = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, _Raw):
            parts.append(item.text)
        elif isinstance(item, dict):
            stack.append(_Raw("}"))
            for i, (key, inner) in enumerate(reversed(list(item.items()))):
                comma = "," if i < len(item) - 1 else ""
                stack += [inner, _Raw(f"{comma}{json.dumps(str(key))}:")]
            parts.append("{")
        elif isinstance(item, list | tuple):
            stack.append(_Raw("]"))
            for i, inner in enumerate(reversed(item)):
                stack += [inner, _Raw("," if i < len(item) - 1 else "")]
            parts.append("[")
        elif isinstance(item, float) and not math.isfinite(item):
            parts.append("NaN" if math.isnan(item) else "1e999" if item > 0 else "-1e999")
        else:
            parts.append(json.dumps(item))
    return "".join(parts)


class _Raw:
    def __init__(self, text: str) -> None:
        self.text = text
