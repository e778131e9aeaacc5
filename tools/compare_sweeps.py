"""How long the same sweep takes on one worker, on two, and on a Ray cluster of one node with two processors.

    python tools/compare_sweeps.py --cells 40 --rounds 3 [--ray]

Each run has an empty cache, an empty folder and graphs of its own, which no node's cache has. The engines are taken in
turns, so that what else the machine does meets all of them; on a busy machine the figures are ranks at best. Cells are
small graphs: what is compared is the engine.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def model(path: Path, seed: int) -> None:
    weights = np.random.default_rng(seed).standard_normal((64, 32)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 32])],
        [numpy_helper.from_array(weights, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)


def project(folder: Path, cells: int, run: int) -> Path:
    targets = ("ort-fp32", "ort-fp16")
    names = [f"m{n}.onnx" for n in range((cells + 1) // len(targets))]
    for number, name in enumerate(names):
        model(folder / name, 1000 * run + number)
    file = folder / "sweep.toml"
    sources = ", ".join(f'"{n}"' for n in names)
    file.write_text(f"sources = [{sources}]\ntargets = {list(targets)}\n[options]\nspeed_gate = false\n")
    return file


def seconds(file: Path, *more: str) -> float:
    with tempfile.TemporaryDirectory() as folder:
        env = {**os.environ, "EDGEKIT_CACHE": f"{folder}/cache", "TMPDIR": folder}
        words = [sys.executable, "-m", "edgekit", "sweep", str(file), "--out", f"{folder}/out", *more]
        began = time.perf_counter()
        subprocess.run(words, check=True, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ray", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        engines = {"1 worker": ["--workers", "1"], "2 workers": ["--workers", "2"]}
        cluster = None
        if asked.ray:
            from ray.cluster_utils import Cluster

            node = {"num_cpus": 2, "include_dashboard": False}
            cluster = Cluster(initialize_head=True, head_node_args=node)
            engines["Ray, 2 processors"] = ["--engine", "ray", "--address", cluster.address]
        times: dict[str, list[float]] = {name: [] for name in engines}
        for number in range(asked.rounds):
            order = list(engines) if number % 2 == 0 else list(engines)[::-1]
            for name in order:
                file = project(Path(folder), asked.cells, sum(map(len, times.values())))
                times[name].append(seconds(file, *engines[name]))
                print(f"round {number + 1}: {name}: {times[name][-1]:.1f} s", flush=True)
        if cluster is not None:
            cluster.shutdown()
    base = statistics.median(times["1 worker"])
    two = statistics.median(times["2 workers"])
    print(f"{asked.cells} cells, load {os.getloadavg()[0]:.1f} at the end")
    for name, found in times.items():
        middle = statistics.median(found)
        print(f"{name}: {middle:.1f} s, {middle / base:.2f} of 1 worker, {middle / two:.2f} of 2 workers")


if __name__ == "__main__":
    main()
