"""Engines on a real NVIDIA GPU with TensorRT: ``pytest -m gpu tests/gpu``. Skipped, with the reason, everywhere else.

What was seen by this suite, and on what, is written down in ``docs/tensorrt.md``.
"""

import importlib.util
import statistics
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "device"))

from engine_models import artifact

from edgekit.backends.nvidia import gpu_present
from edgekit.backends.nvidia.engine import read_key
from edgekit.devices import engines
from edgekit.devices.execute import LOCAL, run_artifact
from edgekit.devices.runnable import Runnable
from edgekit.devices.transports.connect import connect
from edgekit.errors import EngineMismatchError
from edgekit.graph import io

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not gpu_present() or importlib.util.find_spec("tensorrt") is None,
        reason="no NVIDIA GPU, or tensorrt is not installed",
    ),
]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))


def inputs():
    return {"x": np.random.default_rng(0).normal(size=(1, 3, 8, 8)).astype("f")}


def snr_db(reference, output):
    return 10 * np.log10(np.square(reference).sum() / np.square(output - reference).sum())


def test_an_int8_engine_is_built_here_and_computes_what_onnx_runtime_does(tmp_path):
    main = artifact(tmp_path / "a")
    reference = io.session(main).run(None, inputs())[0]
    with run_artifact(
        Runnable(backend="tensorrt", main=main, outputs=("y",)), [inputs()], placement=True
    ) as run:
        output = next(iter(run.outputs))["y"]
        assert run.placement["layers"]
    assert snr_db(reference, output) >= 30


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_gpu_time_is_that_of_a_plain_loop(tmp_path, cuda_graph):
    """Events around the runner's launches, twice: medians within 2 %, and below the time on the wall."""
    main = artifact(tmp_path / "a")
    with connect(LOCAL) as transport:
        made = engines.engine_for(transport, "tensorrt", main)
    session = _session(made.engine, {"threads": 1, "cuda_graph": cuda_graph})
    session.prepare(inputs())
    for _ in range(50):
        session.invoke()
    first, second = (statistics.median(session.gpu_times(500)) for _ in range(2))
    assert first == pytest.approx(second, rel=0.02)


def test_an_altered_engine_is_refused(tmp_path):
    main = artifact(tmp_path / "a")
    with connect(LOCAL) as transport:
        engines.copy_into(engines.engine_for(transport, "tensorrt", main), main.parent)
    engine = main.with_name("model.engine")
    assert read_key(engine).gpu
    data = bytearray(engine.read_bytes())
    data[100] ^= 1
    engine.write_bytes(bytes(data))
    with pytest.raises(EngineMismatchError):
        run_artifact(Runnable(backend="tensorrt", main=engine, trusted=True), [inputs()])


def _session(engine, options):
    """The runner, imported as the agent has it."""
    import types

    from edgekit.core import plugins
    from edgekit.devices.agent import failure

    package, backend = types.ModuleType("gpu_agent"), types.ModuleType("gpu_agent.backend")
    package.__path__, backend.NAME = [str(Path(plugins.runner("tensorrt")).parent)], "tensorrt"
    sys.modules.update({"gpu_agent": package, "gpu_agent.backend": backend, "gpu_agent.failure": failure})
    return importlib.import_module("gpu_agent.runner").load(str(engine), options)
