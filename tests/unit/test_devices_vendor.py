"""Reading the vendors' tools.

None of them could be run here: the texts are in the form of public logs (tensorflow/tensorflow#42507,
yuenshome/yuenshome.github.io#77, ARM-software/ComputeLibrary#850, microsoft/onnxruntime#17313 and #26313,
NVIDIA/TensorRT#4177), with figures of our own.
"""

# ruff: noqa: E501 - the lines of logs are as long as they are

import json

import pytest

from edgekit.backends.base import Reading, Timing
from edgekit.backends.nvidia.benchmark import read as read_trtexec
from edgekit.backends.onnxruntime.benchmark import read as read_perf_test
from edgekit.backends.tflite.benchmark import read as read_benchmark_model
from edgekit.devices.job import TaskResult
from edgekit.devices.vendor import replicate, tool_of, tools
from edgekit.devices.wire import ProgramResult
from edgekit.errors import BackendError, UsageError

BENCHMARK_MODEL = """STARTING!
Log parameter values verbosely: [0]
Num threads: [4]
Graph: [/data/local/tmp/model.tflite]
#threads used for CPU inference: [4]
Loaded model /data/local/tmp/model.tflite
The input model file size (MB): 0.004448
Initialized session in 0.855ms.
Running benchmark for at least 1 iterations and at least 0.5 seconds but terminate if exceeding 150 seconds.
count=15 first=49060 curr=33682 min=32825 max=49060 avg=34825.1 std=3930

Running benchmark for at least 50 iterations and at least 1 seconds but terminate if exceeding 150 seconds.
count=50 first=32891 curr=33978 min=32641 max=34005 avg=33209.4 std=450

Inference timings in us: Init: 855, First inference: 49060, Warmup (avg): 34825.1, Inference (avg): 33209.4
Note: as the benchmark tool itself affects memory footprint, the following is only APPROXIMATE to the actual memory footprint of the model at runtime. Take the information at your discretion.
Memory footprint delta from the start of the tool (MB): init=1.5 overall=12.5
"""

OLD_BENCHMARK_MODEL = """count=15 first=66753 curr=66800 min=66699 max=66838 avg=66767.6 std=39

Average inference timings in us: Warmup: 76605.9, Init: 9933, no stats: 66767.6
"""

PERF_TEST = """Setting intra_op_num_threads to 4
Session creation time cost: 0.127918 s
First inference time cost: 151 ms
Total inference time cost: 1.44871 s
Total inference requests: 10
Average inference time cost: 144.871 ms
Total inference run time: 1.44916 s
Number of inferences per second: 6.9
Avg CPU usage: 68 %
Peak working set size: 158171136 bytes
Min Latency: 0.143 s
Max Latency: 0.151 s
P50 Latency: 0.1445 s
P90 Latency: 0.149 s
P95 Latency: 0.15 s
P99 Latency: 0.151 s
P999 Latency: 0.151 s
"""

TRTEXEC = """[10/03/2024-10:47:59] [I] Engine deserialized in 0.0123 sec.
[10/03/2024-10:47:59] [I] === Performance summary ===
[10/03/2024-10:47:59] [I] Throughput: 130.298 qps
[10/03/2024-10:47:59] [I] Latency: min = 5.38672 ms, max = 13.3664 ms, mean = 7.60628 ms, median = 7.16092 ms, percentile(90%) = 10.2996 ms, percentile(95%) = 10.8698 ms, percentile(99%) = 12.9675 ms
[10/03/2024-10:47:59] [I] GPU Compute Time: min = 5.34595 ms, max = 13.3388 ms, mean = 7.58404 ms, median = 7.14139 ms, percentile(90%) = 10.2881 ms, percentile(95%) = 10.8175 ms, percentile(99%) = 12.9485 ms
[10/03/2024-10:47:59] [I] D2H Latency: min = 0.0039 ms, max = 0.11 ms, mean = 0.01 ms, median = 0.0043 ms
"""


def test_benchmark_model():
    found = read_benchmark_model(BENCHMARK_MODEL)
    assert found == Reading(
        mean_ms=33.2094, load_ms=0.855, first_ms=49.06, model_memory=int(12.5 * 1024 * 1024)
    )
    assert found.steady_ms == (33.2094,)
    assert found.missing() == ("single inferences", "a median (the mean stands for it)")


def test_benchmark_model_with_a_median():
    text = BENCHMARK_MODEL.replace(
        "avg=33209.4 std=450", "avg=33209.4 std=450 p5=32700 median=33100 p95=33900"
    )
    found = read_benchmark_model(text)
    assert found.steady_ms == (33.1,)
    assert found.missing() == ("single inferences",)


def test_an_older_benchmark_model():
    found = read_benchmark_model(OLD_BENCHMARK_MODEL)
    assert (found.mean_ms, found.load_ms, found.first_ms) == (66.7676, 9.933, None)
    assert "the first inference" in found.missing()
    assert "memory" in found.missing()


def test_perf_test():
    csv = "model,0.144,158171136,68,0\nmodel,0.146,158171136,68,1\n"
    found = read_perf_test(PERF_TEST, csv)
    assert found.samples_ms == (144.0, 146.0)
    assert (found.load_ms, found.first_ms) == (pytest.approx(127.918), 151.0)
    assert (found.median_ms, found.p90_ms, found.p99_ms) == pytest.approx((144.5, 149.0, 151.0))
    assert found.peak_memory == 158171136
    assert found.missing() == ()
    newer = "model,0.0001,0.144,158171136,68,0\nmodel,0.0001,0.146,158171136,68,1\n"
    assert read_perf_test(PERF_TEST, newer).samples_ms == (144.0, 146.0)
    older = read_perf_test(PERF_TEST.replace("Latency:", "Latency is").replace(" s\n", " sec\n"))
    assert older.median_ms == pytest.approx(144.5)
    assert older.samples_ms == ()


def test_trtexec():
    times = json.dumps([{"startEnqMs": 0.0, "latencyMs": 8.0, "computeMs": v} for v in (7.1, 7.2)])
    found = read_trtexec(TRTEXEC, times)
    assert found.samples_ms == (7.1, 7.2)
    assert (found.median_ms, found.mean_ms, found.p90_ms, found.p99_ms) == (
        7.14139,
        7.58404,
        10.2881,
        12.9485,
    )
    assert found.load_ms == pytest.approx(12.3)
    assert read_trtexec(TRTEXEC, "[damaged").steady_ms == (7.14139,)
    sloppy = "GPU Compute Time: min = 3.1 ms, max = 3.8 ms, mean = 3.6 ms, median = 3.7 ms, percentile(99%) 3.87 ms"
    assert read_trtexec(sloppy).p99_ms == 3.87


@pytest.mark.parametrize("backend", list(tools()))
def test_output_that_cannot_be_read_is_shown(backend):
    with pytest.raises(BackendError, match="bad flag") as caught:
        tools()[backend].read("ERROR: bad flag --use_xnnpack", "")
    assert caught.value.exit_code == 6


def test_what_they_are_told():
    timing = Timing(seconds=0.5, iterations=10, warmup_s=2.0, threads=4)
    litert = tool_of("tflite").argv("/m.tflite", {"xnnpack": False}, timing, "/t")
    assert {"--graph=/m.tflite", "--num_threads=4", "--use_xnnpack=false", "--min_secs=0.5"} <= set(litert)
    ort = tool_of("onnxruntime").argv("/m.onnx", {"graph_optimization": "extended"}, timing, "/t")
    assert ort[-2:] == ["/m.onnx", "/t"]
    assert ort[ort.index("-o") + 1] == "2"
    trt = tool_of("tensorrt").argv("/m.engine", {}, timing, "/t")
    assert {"--loadEngine=/m.engine", "--warmUp=2000", "--exportTimes=/t"} <= set(trt)
    with pytest.raises(UsageError, match="openvino"):
        tool_of("openvino")


def test_what_is_missing_is_said():
    done = TaskResult(result=ProgramResult(text=OLD_BENCHMARK_MODEL))
    found = replicate("phone", "tflite", 1, done)
    assert any("random inputs" in note for note in found.notes)
    assert any("does not tell: single inferences" in note and "memory" in note for note in found.notes)
    assert not found.is_raw
