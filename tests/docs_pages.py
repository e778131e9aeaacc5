"""The code of documentation pages: fenced blocks with what is written before them, and the commands in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_FENCE = re.compile(
    r"^(?:<!-- (?P<note>[^\n]*) -->\n)?```(?P<info>[^\n`]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
_INDENTED = re.compile(r"(?:^|\n\n|\n)((?:    [^\n]+\n)+)")


@dataclass(frozen=True)
class Block:
    """A fenced block. ``title``: the file that it is; ``note``: the comment right before it."""

    language: str
    title: str
    note: str
    text: str

    @property
    def not_run(self) -> bool:
        return self.note.startswith("not run: ")

    @property
    def exit_code(self) -> int:
        return int(self.note.removeprefix("exit ")) if self.note.startswith("exit ") else 0


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page, in order."""
    found = []
    for match in _FENCE.finditer(page.read_text(encoding="utf-8")):
        language, _, rest = match["info"].strip().partition(" ")
        title = re.search(r'title="([^"]+)"', rest)
        found.append(Block(language, title[1] if title else "", match["note"] or "", match["text"]))
    return found


def commands(page: Path) -> Iterator[list[str]]:
    """The words of every ``edgekit …`` line in shell blocks and indented code, comments left out."""
    text = page.read_text(encoding="utf-8")
    code = [b.text for b in blocks(page) if b.language in ("sh", "bash")]
    prose = _FENCE.sub("", text)
    code += [re.sub(r"^    ", "", m[1], flags=re.MULTILINE) for m in _INDENTED.finditer(prose)]
    for block in code:
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("edgekit "):
                whole = re.sub(r"\[(--[^]]*)\]", r"\1", line)  # what a synopsis leaves to the reader
                yield shlex.split(whole, comments=True)[1:]
