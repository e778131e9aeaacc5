"""The example notebook: kept without outputs, runs from the first cell to the last, and shows what it says."""

from __future__ import annotations

import os
import shutil

import pytest

nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed: pip install nbformat")
nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed: pip install nbclient")
pytest.importorskip("ipykernel", reason="ipykernel is not installed: pip install ipykernel")

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("digits")]

NOTEBOOK = "examples/notebook/digits.ipynb"


@pytest.fixture(scope="module")
def ran(root, tmp_path_factory):
    """The notebook as it is once all of its cells ran, from a copy of the examples: it writes beside itself."""
    examples = tmp_path_factory.mktemp("notebook") / "examples"
    for name in ("digits", "notebook"):
        shutil.copytree(
            root / "examples" / name, examples / name, ignore=shutil.ignore_patterns("__pycache__", "build")
        )
    notebook = nbformat.read(examples / "notebook" / "digits.ipynb", as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": examples / "notebook"}}
    )
    own = tmp_path_factory.mktemp("jupyter")  # history and settings: none of the user's
    names = ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR")
    client.execute(env=os.environ | {name: str(own / name) for name in names})
    return notebook


def shown(notebook, line: str) -> str:
    """What the cell that ends with ``line`` shows, as HTML, else as text."""
    (cell,) = [c for c in notebook.cells if c.cell_type == "code" and c.source.splitlines()[-1] == line]
    results = [o for o in cell.outputs if o.output_type == "execute_result"]
    printed = "".join(o.text for o in cell.outputs if o.output_type == "stream" and o.name == "stdout")
    return "".join(o.data.get("text/html", "") for o in results) or printed


def test_it_is_kept_without_outputs(root):
    notebook = nbformat.read(root / NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = [c for c in notebook.cells if c.cell_type == "code"]
    assert len(code) >= 8
    assert all(not c.outputs and c.execution_count is None for c in code)
    assert "/home/" not in (root / NOTEBOOK).read_text(encoding="utf-8")


def test_every_cell_runs_and_nothing_is_complained_of(ran):
    for cell in ran.cells:
        if cell.cell_type == "code":
            errors = [o for o in cell.outputs if o.output_type == "error" or o.get("name") == "stderr"]
            assert not errors, (cell.source, errors)


def test_the_build_shows_both_targets_with_their_verdicts(ran):
    table = shown(ran, "result.raise_for_failures()")
    assert "<td>ort-int8</td>" in table
    assert "<td>tflite-int8</td>" in table
    assert table.count("<td>passed</td>") == 2
    assert "integers do 100% of the arithmetic" in shown(
        ran, 'print(f"integers do {litert.manifest.placement.share:.0%} of the arithmetic")'
    )


def test_what_is_measured_and_compared_shows_as_tables(ran):
    figures = shown(
        ran, "litert.bench(baseline=onnx, settings=edgekit.BenchSettings(processes=3, seconds=0.1))"
    )
    for heading in ("p50 ms", "p90 ms", "of baseline", "verdict"):
        assert f"<th>{heading}</th>" in figures
    assert "<td>snr</td>" in shown(ran, "litert.verify()")
    assert "CONV_2D" in shown(ran, "litert.inspect()")
    assert "stem.0" in shown(ran, "litert.diff()")
    assert "<th>ran on</th>" in shown(ran, "litert.profile(runs=8)")


def test_the_report_is_shown_in_a_frame_that_runs_nothing(ran):
    frame = shown(ran, 'write([OUT], OUT / "report.html")')
    assert frame.startswith("<iframe sandbox srcdoc=")
    assert "tflite-int8" in frame
    assert frame.count("<") == 2  # the page itself is text in the attribute
