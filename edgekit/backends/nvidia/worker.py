"""Parses (and builds) one ONNX file with TensorRT or TensorRT-RTX, in a process of its own.

A fresh process for every build: the builder keeps state from one build to the next (the same model gave
another engine after a failed build), and a crash of the library must not end edgekit. Standard library and
the named runtime only; one JSON job on stdin, one JSON answer on stdout:

    {"module": "tensorrt_rtx", "onnx": PATH, "engine": PATH or null, "compute_capabilities": ["SM86"],
     "profiles": {"input": [[min…], [opt…], [max…]]}, "tf32": false}
    {"version": "1.7.1", "errors": [{"node", "op", "message", "plugin"}], "failure": "", "layers": 21}

What the parser throws from inside an operator names no node and ends its work: the node is then the one that it said
last that it parses. Each is written to stderr as ``AT NODE`` before the library sees it, for the case that it crashes.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import sys
from types import ModuleType
from typing import Any, TypedDict


class Job(TypedDict):
    """What to do; ``profiles`` are smallest, usual and largest shape by input."""

    module: str
    onnx: str
    engine: str | None
    compute_capabilities: list[str]
    profiles: dict[str, list[list[int]]]
    tf32: bool


class ParserError(TypedDict):
    """One node that the parser refuses, for want of a ``plugin``?; both names are empty for an input or output."""

    node: str
    op: str
    message: str
    plugin: bool


class Answer(TypedDict):
    """What came of it. ``failure`` is empty where nothing else than ``errors`` is wrong."""

    version: str
    errors: list[ParserError]
    failure: str
    layers: int


def main() -> None:
    """Answer one job."""
    job = json.loads(sys.stdin.read())
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what the library prints must not get into the answer
    json.dump(run(job), answer)
    answer.close()


def run(job: Job) -> Answer:
    """Parse; then, if an engine is wanted and the parser took everything, build and write it."""
    trt = importlib.import_module(job["module"])
    log = _Log(trt)
    builder = trt.Builder(log.logger)
    flags = trt.NetworkDefinitionCreationFlag
    network = builder.create_network(
        1 << int(flags.STRONGLY_TYPED) if hasattr(flags, "STRONGLY_TYPED") else 0
    )
    parser = trt.OnnxParser(network, log.logger)
    parsed = parser.parse_from_file(job["onnx"])
    errors = [_error(parser.get_error(i), log) for i in range(parser.num_errors)]
    answer: Answer = {
        "version": trt.__version__,
        "errors": errors,
        "failure": "" if parsed or errors else log.last(),
        "layers": network.num_layers,
    }
    if parsed and job["engine"]:
        answer["failure"] = _build(trt, builder, network, job) or ""
        answer["failure"] = answer["failure"] and f"{answer['failure']}: {log.last()}"
    return answer


def _error(error: Any, log: _Log) -> ParserError:
    node, op = error.node_name(), error.node_operator()
    if not (node or op) and error.func() not in ("importInput", "importInputs"):
        node, op = log.at
    message = _first_line(error.desc())
    return {"node": node, "op": op, "message": message, "plugin": _NO_PLUGIN.search(message) is not None}


_NO_PLUGIN = re.compile(r"(?i)\bplugin\b.*\bnot found\b|\bplugin != nullptr")
"""What the parsers' assertions say of an operator that they make a plugin of, where the registry has none."""


def _build(trt: ModuleType, builder: Any, network: Any, job: Job) -> str | None:
    config = builder.create_builder_config()
    if not job["tf32"]:
        config.clear_flag(trt.BuilderFlag.TF32)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    lacking = [c for c in job["compute_capabilities"] if not hasattr(trt.ComputeCapability, c)]
    if lacking:
        return f"it builds nothing for compute capability {', '.join(lacking)}"
    if job["compute_capabilities"]:
        config.num_compute_capabilities = len(job["compute_capabilities"])
        for index, name in enumerate(job["compute_capabilities"]):
            config.set_compute_capability(getattr(trt.ComputeCapability, name), index)
    if job["profiles"]:
        profile = builder.create_optimization_profile()
        for name, (low, usual, high) in job["profiles"].items():
            profile.set_shape(name, low, usual, high)
        config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        return "the builder made no engine"
    assert job["engine"]
    with open(job["engine"], "wb") as file:  # noqa: PTH123  (standard library only, no Path needed)
        file.write(memoryview(engine))
    return None


_PARSING = re.compile(r"(?:Static check for parsing|Parsing) node: (.*) \[([^\]]*)\]")
"""What both parsers say, among what is verbose, before they read a node."""


class _Log:
    """Keeps the library's error messages, and ``at``: name and operator of the node that it parses."""

    def __init__(self, trt: Any) -> None:
        messages: list[str] = []
        self.at = ("", "")
        own = self

        class Logger(trt.ILogger):  # type: ignore[misc]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: object, message: str) -> None:
                if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                    messages.append(message)
                elif severity == trt.ILogger.VERBOSE and "arsing node: " in message:
                    own._parses(message)

        self.logger = Logger()
        self._messages = messages

    def _parses(self, message: str) -> None:
        found = _PARSING.match(message)
        if found and found.groups() != self.at:
            self.at = (found.group(1), found.group(2))
            sys.stderr.write(f"AT {self.at[0]}\n")
            sys.stderr.flush()

    def last(self) -> str:
        return _first_line(self._messages[-1]) if self._messages else "no reason given"


def _first_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    useful = [line for line in lines if "catchCudaError" not in line and not line.startswith("Invalid Node")]
    return (useful or lines or [""])[0]


if __name__ == "__main__":
    main()
