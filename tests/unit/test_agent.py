"""The agent and the host's side of it, over a fake runtime: protocol, conversions, every way to fail."""

import ast
import os
import signal
import subprocess
import sys
import time
from pathlib import Path, PurePosixPath

import numpy as np
import pytest

from edgekit.core.plugins import runner as runner_path
from edgekit.devices import wire
from edgekit.devices.execute import run_artifact
from edgekit.devices.job import Task, Transcript
from edgekit.devices.pack import pack_runner
from edgekit.devices.runnable import Runnable
from edgekit.errors import (
    BackendError,
    DataError,
    DeviceError,
    MissingExtraError,
    NotRunnableError,
    RuntimeCrashError,
    UnknownNameError,
)

ROOT = Path(__file__).parents[2]
FAKE = Path(__file__).with_name("fake_runner.py")
X = np.array([1.0, -2.0, 3.5], np.float32)


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr("edgekit.devices.pack.runner", lambda backend: FAKE)

    def go(behaviour="good", *, inputs=None, placement=False, timeout=600, states=None, **fields):
        model = tmp_path / "model.fake"
        model.write_text(behaviour)
        runnable = Runnable(backend="fake", main=model, **{"options": {"threads": 1}, **fields})
        samples = [{"x": X}, {"x": X + 1}] if inputs is None else inputs
        return run_artifact(runnable, samples, placement=placement, timeout=timeout, states=states)

    return go


def test_outputs_come_back_by_name_sample_by_sample(run):
    with run() as result:
        first, second = list(result.outputs)
        np.testing.assert_array_equal(first["y"], X * 2)
        np.testing.assert_array_equal(second["z"], (X + 1) * -2)
        assert next(iter(result.outputs))["y"].dtype == np.float32  # read a second time
        assert result.versions == {"fake": "1.0"}
        assert set(result.seconds) == {"import", "load", "run"}
        assert result.placement is None
        path = result.outputs.path
    assert not path.exists()


def test_placement_is_asked_for_and_is_json(run):
    with run(placement=True) as result:
        assert result.placement == {"nodes": [], "options": {"threads": 1, "placement": True}, "nan": None}


def test_threads_default_to_the_processors(run):
    with run(options={"a": 1}, placement=True) as result:
        assert result.placement["options"]["threads"] == len(os.sched_getaffinity(0))


def test_only_the_wanted_outputs_in_the_wanted_order(run):
    with run(outputs=("z", "y")) as result:
        assert [tuple(o) for o in result.outputs] == [("z", "y")] * 2


def test_inputs_match_by_alias_and_by_being_the_only_one(run):
    for name in ("serving_default_x", "input_ids"):
        with run(inputs=[{name: X}]) as result:
            np.testing.assert_array_equal(next(iter(result.outputs))["y"], X * 2)


def test_scalars_keep_their_shape(run):
    with run(inputs=[{"x": np.float32(4)}]) as result:
        assert next(iter(result.outputs))["y"].shape == ()


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([{"a": X, "b": X}], "no input 'a'"),
        ([{"x": X.astype("U")}], "takes float32"),
        ([{"x": X.astype(np.int64)}], "takes float32"),
        ([], "no sample"),
        ([{"x": X}, {"y": X}], "sample 1"),
    ],
)
def test_wrong_inputs(run, inputs, message):
    with pytest.raises(DataError, match=message):
        run(inputs=inputs)


def test_unknown_output(run):
    with pytest.raises(DataError, match="no output 'logits'"):
        run(outputs=("logits", "y"))


def test_integer_models_convert_only_when_asked(run):
    with pytest.raises(DataError, match="takes int8"):
        run("int8")
    with run("int8", quantize=True) as result:  # y = x here: there and back through scale 0.5, zero -3
        np.testing.assert_array_equal(next(iter(result.outputs))["y"], X)
    wide = np.array([1, 2, 127], np.int64)
    with run("int8", inputs=[{"x": wide}]) as result:
        assert next(iter(result.outputs))["y"].tolist() == [1, 2, 127]
    with pytest.raises(DataError, match="does not fit"):
        run("int8", inputs=[{"x": wide + 1}])


def test_quantized_inputs_saturate(run):
    with run("int8", inputs=[{"x": np.array([1e9, -1e9], np.float32)}], quantize=True) as result:
        assert next(iter(result.outputs))["y"].tolist() == [(127 + 3) * 0.5, (-128 + 3) * 0.5]


def test_missing_runtime(run, monkeypatch):
    monkeypatch.setenv("FAKE_RUNTIME", "missing")
    with pytest.raises(MissingExtraError, match="fake"):
        run()


def test_what_was_prepared_for_a_plugins_backend_is_found(run, monkeypatch, tmp_path):
    """The runner need not say what it is called: its name is packed with it."""
    prepared = tmp_path / "runtimes" / f"cp{sys.version_info[0]}{sys.version_info[1]}" / "fake"
    prepared.mkdir(parents=True)
    (prepared / "edgekit.json").write_text("{}")
    (prepared / "fake_extension.py").write_text("VERSION = '2.0'\n")
    monkeypatch.setenv("EDGEKIT_RUNTIMES", str(tmp_path / "runtimes"))
    monkeypatch.setenv("FAKE_RUNTIME", "prepared")
    with run() as result:
        assert result.versions["fake"] == "2.0"


def test_missing_hardware(run, monkeypatch):
    monkeypatch.setenv("FAKE_RUNTIME", "unusable")
    with pytest.raises(NotRunnableError, match="no fake hardware"):
        run()


def test_a_model_that_does_not_load(run):
    with pytest.raises(BackendError, match="bad magic"):
        run("unloadable")


def test_an_exception_brings_the_far_traceback(run):
    with pytest.raises(BackendError, match="sample 0: ValueError: no kernel") as caught:
        run("raise")
    assert "runner.py" in caught.value.hint


def test_a_segfault_names_signal_place_and_last_words(run):
    with pytest.raises(RuntimeCrashError, match="SIGSEGV during run") as caught:
        run("segfault")
    assert "about to crash" in caught.value.message
    assert caught.value.exit_code == 6


def test_an_early_exit(run):
    with pytest.raises(RuntimeCrashError, match="status 9"):
        run("exit")


def test_a_hang_is_ended(run):
    with pytest.raises(RuntimeCrashError, match="no answer within 1 s"):
        run("hang", timeout=1)


def test_nothing_is_left_behind(run, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", None)
    run().close()
    with pytest.raises(RuntimeCrashError):
        run("segfault")
    assert list((tmp_path / "scratch").iterdir()) == []


def test_the_far_process_ends_with_its_host(tmp_path):
    model = tmp_path / "model"
    model.write_text("hang")
    agent = pack_runner(FAKE, "fake").write(tmp_path)
    np.save(tmp_path / "in", X)
    job = (
        f'{{"action":"run","model":"{model}","options":{{}},"outputs":{{"path":"{tmp_path}/out","names":[]}},'
        f'"inputs":{{"path":"{tmp_path}/in.npy","names":["x"],"count":1}}}}\n'
    )
    child = subprocess.Popen([sys.executable, agent], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    child.stdin.write(job.encode())
    child.stdin.flush()
    while b'"run"' not in child.stdout.readline():
        assert child.poll() is None
    child.stdin.close()
    assert child.wait(10) == 3
    child.stdout.close()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("Welcome to Ubuntu", "not of the agent's protocol"),
        ('{"seq": 2, "event": "phase", "name": "x"}', "lost"),
        ("[]", "not of the agent's protocol"),
    ],
)
def test_a_broken_protocol_is_a_device_error(line, message):
    job = wire.Job(action="probe")
    task = Task(id="0", backend="x", agent=PurePosixPath("a"), job=job, result=wire.ProbeResult, timeout=1)
    with pytest.raises(DeviceError, match=message):
        Transcript("board", task).line(line)


def test_the_archive_is_deterministic_and_named_by_content():
    first, second = pack_runner(FAKE, "fake"), pack_runner(FAKE, "fake")
    assert first.content == second.content
    assert first.filename == f"agent-{first.sha256[:16]}.pyz"
    assert pack_runner(runner_path("onnxruntime"), "onnxruntime").sha256 != first.sha256


def test_unknown_backend():
    with pytest.raises(UnknownNameError, match="onnxrumtime") as caught:
        runner_path("onnxrumtime")
    assert "onnxruntime" in caught.value.hint


@pytest.mark.parametrize(
    "path",
    sorted([*(ROOT / "edgekit/devices/agent").glob("*.py"), *(ROOT / "targets").glob("*/runner.py")]),
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_what_runs_on_the_device_is_python_3_8(path):
    tree = ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 8))
    imported = {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and not n.level}
    imported |= {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    assert not any(name.split(".")[0] == "edgekit" for name in imported)


def test_ctrl_c_leaves_no_process(tmp_path):
    script = tmp_path / "host.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\nimport numpy as np\n"
        "from edgekit.devices import pack\nfrom edgekit.devices.execute import run_artifact\n"
        "from edgekit.devices.runnable import Runnable\n"
        f"pack.runner = lambda backend: Path({str(FAKE)!r})\n"
        "print('go', flush=True)\n"
        f"runnable = Runnable(backend='fake', main=Path({str(tmp_path / 'm')!r}))\n"
        "run_artifact(runnable, [{'x': np.ones(3, 'f')}])\n"
    )
    (tmp_path / "m").write_text("hang")
    host = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    host.stdout.readline()
    children: list[int] = []
    for _ in range(100):
        text = Path(f"/proc/{host.pid}/task/{host.pid}/children").read_text()
        children = [int(c) for c in text.split()]
        if children:
            break
        time.sleep(0.05)
    host.send_signal(signal.SIGINT)
    host.wait(10)
    host.stdout.close()
    assert children
    # The interrupt may fall before the host knows its child: that one then ends by its stdin's end.
    for _ in range(200):
        if not any(Path(f"/proc/{c}").exists() for c in children):
            return
        time.sleep(0.05)
    pytest.fail("the agent outlived its host")


def test_an_input_takes_an_output_of_the_step_before(run):
    with run(inputs=[{"x": X}] * 4, outputs=("y", "z"), states={"x": "y"}) as result:
        for step, row in enumerate(result.outputs):
            np.testing.assert_array_equal(row["y"], X * 2 ** (step + 1))
