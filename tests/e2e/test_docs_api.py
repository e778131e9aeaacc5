"""The examples of docs/api.md, run one after the other as a reader would."""

from __future__ import annotations

import re

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("api")]


def test_every_example_runs(root, tmp_path, monkeypatch):
    text = (root / "docs" / "api.md").read_text(encoding="utf-8")
    blocks = list(re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    assert len(blocks) == len(re.findall(r"^```python$", text, re.MULTILINE)) >= 8
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "docs_api"}
    for block in blocks:
        lines = "\n" * text[: block.start(1)].count("\n")  # tracebacks have the page's own line numbers
        exec(compile(lines + block.group(1), "docs/api.md", "exec"), names)
