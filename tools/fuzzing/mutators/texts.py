"""TOML and lines of JSON: documents changed as documents, then written as the format wants them, or nearly so."""

from __future__ import annotations

import json
import math
import random
import re
import tomllib

from fuzzing import values
from fuzzing.mutators import documents, raw

_BARE = re.compile(r"[A-Za-z0-9_-]+")


def toml(rng: random.Random, data: bytes) -> bytes:
    """Another table, or damaged text."""
    if rng.random() < 0.2:
        return raw.mutate(rng, data)
    document = documents.mutate(rng, tomllib.loads(data.decode()))
    text = _toml(document) if isinstance(document, dict) else "= 1"
    match rng.randrange(20):
        case 0:
            text += text
        case 1:
            text = text.replace("=", rng.choice(("", "==", "= [[[", "= " + "[" * 3000, "= 1e999 #")), 1)
        case 2:
            text = text.replace('"', '"""', 1)
        case 3:
            text = "a." * 2000 + "a = 1\n" + text
        case 4:
            text += f"\n[{'x.' * 500}x]\n"
    return text.encode("utf-8", "surrogatepass")


def _toml(document: dict) -> str:
    return "".join(f"{_key(key)} = {_toml_value(value)}\n" for key, value in document.items())


def _key(key: object) -> str:
    return str(key) if _BARE.fullmatch(str(key)) else json.dumps(str(key))


def _toml_value(value: object, depth: int = 0) -> str:
    if depth > 300 or value is None:
        return "[]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(k)} = {_toml_value(v, depth + 1)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml_value(v, depth + 1) for v in value) + "]"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, int | float):
        return repr(value)
    return json.dumps(str(value)).replace("\\u", "\\u") if "\ud800" not in str(value) else '"x"'


def lines(rng: random.Random, data: bytes, *, numbered: bool) -> bytes:
    """A stream of JSON messages: changed, lost, repeated, in another order; the numbers mended where there are any."""
    if rng.random() < 0.1:
        return raw.mutate(rng, data)
    messages = [json.loads(line) for line in data.splitlines() if line]
    for _ in range(rng.randint(1, 2)):
        _rearranged(rng, messages) if rng.random() < 0.3 else _changed(rng, messages)
    if numbered and rng.random() < 0.92:
        _renumber(messages)
    return b"\n".join(m if isinstance(m, bytes) else _line(rng, m) for m in messages) + b"\n"


def _renumber(messages: list) -> None:
    for number, message in enumerate(messages, 1):
        if isinstance(message, dict) and "seq" in message:
            message["seq"] = number


def _changed(rng: random.Random, messages: list) -> None:
    if not messages:
        return
    at = rng.randrange(len(messages))
    message = messages[at]
    inner = message.get("line") if isinstance(message, dict) else None
    if isinstance(inner, str) and rng.random() < 0.85:
        try:
            document = json.loads(inner)
        except ValueError:
            document = inner
        text = documents.dump(rng, documents.mutate(rng, document)).decode("utf-8", "replace")
        message["line"] = text
    else:
        messages[at] = documents.mutate(rng, message)


def _rearranged(rng: random.Random, messages: list) -> None:
    if not messages:
        return
    at = rng.randrange(len(messages))
    match rng.randrange(6):
        case 0:
            del messages[at]
        case 1:
            messages.insert(at, messages[rng.randrange(len(messages))])
        case 2:
            rng.shuffle(messages)
        case 3:
            messages.insert(at, rng.choice((b"", b"\xff\xfe", b"Welcome", b"null", b"[" * 3000, b"\x1b[2J")))
        case 4:
            messages[at:at] = [messages[at]] * 300
        case _:
            messages.insert(at, values.text(rng).encode("utf-8", "replace"))


def _line(rng: random.Random, message: object) -> bytes:
    return documents.dump(rng, message).replace(b"\n", b"\\n")
