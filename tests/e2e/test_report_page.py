"""The report as its readers see it: opened in headless Chromium, and written by the command."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import package_tools as tools
import pytest
from cli_process import edgekit

pytestmark = [pytest.mark.e2e]
pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    import torch

    import edgekit as api

    torch.manual_seed(1)
    module = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
    rows = [np.random.default_rng(k).normal(size=(1, 6)).astype(np.float32) for k in range(40)]
    out = tmp_path_factory.mktemp("page") / "build"
    options = api.Options(out=out, speed_gate=False)
    api.build(
        module, targets=["ort-fp32", "tflite-fp32"], evaluation=rows, options=options
    ).raise_for_failures()
    result = edgekit("report", out, "--html", out / "report.html")
    assert result.code == 0, result.err
    assert "2 artifacts, 2 of them passed" in result.out
    return out / "report.html"


def _chromium(page: Path, profile: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    tools.need("chromium")
    command = ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]
    command += ["--enable-logging=stderr", "--v=0", *flags, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


def test_it_opens_without_a_word_on_the_console(page, tmp_path):
    seen = _chromium(page, tmp_path / "profile", "--dump-dom")
    assert "All artifacts" in seen.stdout
    assert seen.stdout.count("<svg") >= 1
    assert "CONSOLE" not in seen.stderr, seen.stderr[-2000:]


def test_what_is_seen_in_the_light_is_seen_in_the_dark(page, tmp_path):
    image = pytest.importorskip("PIL.Image")
    backgrounds = []
    for scheme in (1, 0):  # light, dark
        shot = tmp_path / f"{scheme}.png"
        flags = [f"--blink-settings=preferredColorScheme={scheme}", "--window-size=1000,900"]
        _chromium(page, tmp_path / f"profile-{scheme}", *flags, f"--screenshot={shot}")
        pixels = np.asarray(image.open(shot).convert("L"), np.float32)
        backgrounds.append(float(np.median(pixels)))
        assert float(np.abs(pixels - backgrounds[-1]).max()) > 120  # text stands out
    assert backgrounds[0] > 200
    assert backgrounds[1] < 60


def test_the_command_says_what_is_wrong(tmp_path):
    result = edgekit("report", tmp_path / "nothing")
    assert result.code == 3
    assert "holds no artifact" in result.err
    assert not (tmp_path / "report.html").exists()
