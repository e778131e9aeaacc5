"""The documentation as a site: every link and anchor leads somewhere, every page is in it, nothing is fetched."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

pytest.importorskip("mkdocs", reason="mkdocs comes with the extra dev")
pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def site(root, tmp_path_factory):
    out = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", out],
        cwd=root, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def test_every_page_is_in_it(site, root):
    pages = [p.relative_to(root / "docs").with_suffix("") for p in (root / "docs").rglob("*.md")]
    assert len(pages) >= 30
    for page in pages:
        place = site / ("index.html" if page.name == "index" else f"{page}/index.html")
        assert "<h1" in place.read_text(encoding="utf-8"), page


def test_a_reader_fetches_nothing_from_elsewhere(site):
    fetched = re.compile(
        r"""<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=["']?(?:https?:)?//([^/"'> ]+)"""
    )
    hosts = {m for page in site.rglob("*.html") for m in fetched.findall(page.read_text(encoding="utf-8"))}
    assert hosts <= {"github.com"}  # the address of the page itself
