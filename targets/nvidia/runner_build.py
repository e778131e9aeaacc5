"""Builds an engine on the device that will run it: by the Python API of TensorRT, else by ``trtexec``.

TensorRT 8.5 and later. What to build comes as one dictionary from ``edgekit/backends/nvidia/request.py``:

    {"onnx": PATH, "folder": PATH, "via": "" | "python" | "trtexec", "typing": "strong" | "weak",
     "precisions": ["int8", "fp16"], "tf32": false, "float32": [NODE, …], "workspace": BYTES or 0,
     "profiles": {NAME: [[min…], [opt…], [max…]]}, "dla": -1 or the core, "timing_cache": PATH or "",
     "trtexec": [ARGUMENT, …]}

and in ``folder`` are then ``model.engine``, ``layers.json``, ``build.log`` and ``timing.cache``, as far as there are
such. In ``trtexec`` the words {onnx}, {engine}, {layers}, {cache} and {workspace} stand for what is known here only.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import importlib
import json
import os
import re
import shutil
import subprocess
import time

from . import runner_key
from .backend import NAME
from .failure import JobError
from .runner import Cuda, CudaError

ENGINE, LAYERS, LOG, CACHE = "model.engine", "layers.json", "build.log", "timing.cache"
_MOST_LOG = 32 << 20
_PAUSE_S = 0.5


def identify():
    """What engines are built for and by here; see ``wire.EngineHost`` on the host."""
    try:
        cuda = Cuda(0)
    except (OSError, CudaError) as error:
        raise JobError("unusable", "there is no usable NVIDIA GPU (%s)" % error) from error
    free, total = cuda.memory()
    via, version, cores = [], "", 0
    try:
        trt = importlib.import_module(NAME)
    except ImportError:
        trt = None
    if trt is not None:
        via, version = ["python"], trt.__version__
        cores = int(getattr(trt.Runtime(trt.Logger(trt.Logger.ERROR)), "num_DLA_cores", 0) or 0)
    tool = trtexec() if NAME == "tensorrt" else ""
    tools = tool_version(tool) if tool else ""
    if tools and (not version or same_release(version, tools)):
        via, version = [*via, "trtexec"], version or tools
    if not via:
        raise JobError("missing", "neither the Python module %s nor trtexec is there" % NAME)
    return {
        "gpu": cuda.name,
        "compute_capability": list(cuda.capability),
        "tensorrt": version,
        "driver": runner_key.driver(),
        "via": via,
        "memory": total,
        "free_memory": free,
        "dla_cores": cores or len(glob.glob(runner_key.root() + "/dev/nvhost-nvdla[0-9]")),
    }


def trtexec():
    """Where it is: NVIDIA's packages do not put it on the path."""
    places = [runner_key.root() + "/usr/src/tensorrt/bin/trtexec", shutil.which("trtexec") or ""]
    return next((p for p in places if p and os.access(p, os.X_OK)), "")


def tool_version(tool):
    """``8.5.2`` of "[TensorRT v8502]", ``10.3.0`` of "[TensorRT v100300]"; empty where it does not say."""
    try:
        done = subprocess.run(
            [tool, "--help"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=60,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    found = re.search(rb"\[TensorRT v(\d+)\]", done.stdout)
    if not found:
        return ""
    number = int(found.group(1))
    if number < 10000:
        return "%d.%d.%d" % (number // 1000, number // 100 % 10, number % 100)
    return "%d.%d.%d" % (number // 10000, number // 100 % 100, number % 100)


def same_release(one, other):
    """Whether two versions are the same but for the build's number, which not both tell."""
    return one.split(".")[:3] == other.split(".")[:3]


def build(spec, host, phase, progress):
    """One engine; see ``wire.EngineBuilt`` on the host for what comes back."""
    via = spec.get("via") or host["via"][0]
    if via not in host["via"]:
        raise JobError("missing", "%s is not there to build with: only %s" % (via, ", ".join(host["via"])))
    folder = spec["folder"]
    os.makedirs(folder, mode=0o700, exist_ok=True)
    spec["workspace"] = int(spec.get("workspace") or 0) or int(host["free_memory"]) // 2
    start = time.perf_counter()
    with Log(os.path.join(folder, LOG), phase, progress) as log:
        answer = (_by_python if via == "python" else _by_trtexec)(spec, log)
    answer.update(version=host["tensorrt"], via=via, seconds=time.perf_counter() - start)
    path = os.path.join(folder, ENGINE)
    if not answer["refused"] and not answer["failure"]:
        if not os.path.isfile(path) or not os.path.getsize(path):
            answer["failure"] = "%s made no engine: %s" % (via, log.last or "it does not say why")
        else:
            answer["size"], answer["sha256"] = os.path.getsize(path), _sha256(path)
    answer["files"] = [n for n in (ENGINE, LAYERS, LOG, CACHE) if os.path.isfile(os.path.join(folder, n))]
    return answer


class Log:
    """``build.log``, the last error, and what is told of the way."""

    def __init__(self, path, phase, progress):
        self._file = open(path, "w", encoding="utf-8", errors="replace")  # noqa: SIM115 - until __exit__
        self._phase, self._progress = phase, progress
        self._written, self._told, self._percent = 0, 0.0, -1
        self.last = ""
        self.node = ("", "")
        self.errors = []

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self._file.close()

    def line(self, severity, text):
        """One message; severity is I, W or E."""
        if severity == "E":
            self.last = _first_line(text)
            self.errors.append(text)
        if self._written < _MOST_LOG:
            self._written += len(text) + 5
            self._file.write("[%s] %s\n" % (severity, text.rstrip("\n")))

    def verbose(self, text):
        """Name and operator of the node that the parser reads: where it throws, nothing else names it."""
        found = _READS.match(text) if "arsing node: " in text else None
        if found:
            self.node = found.groups()

    def at(self, name):
        """What is being done, not more often than twice a second."""
        now = time.monotonic()
        if now - self._told >= _PAUSE_S:
            self._told = now
            self._file.flush()
            self._phase(name)

    def done(self, share):
        """How much of it, 0 to 1."""
        percent = int(100 * max(0.0, min(1.0, share)))
        if percent > self._percent:
            self._percent = percent
            self._progress(percent)


_READS = re.compile(r"(?:Static check for parsing|Parsing) node: (.*) \[([^\]]*)\]")


def _by_python(spec, log):
    trt = importlib.import_module(NAME)
    logger = _logger(trt, log)
    builder = trt.Builder(logger)
    kinds = trt.NetworkDefinitionCreationFlag
    strong = spec["typing"] == "strong"
    if strong and not hasattr(kinds, "STRONGLY_TYPED"):
        raise JobError("build", "%s %s has no strongly typed networks" % (NAME, trt.__version__))
    bits = 1 << int(kinds.STRONGLY_TYPED) if strong else 0
    if hasattr(kinds, "EXPLICIT_BATCH"):
        bits |= 1 << int(kinds.EXPLICIT_BATCH)
    network = builder.create_network(bits)
    parser = trt.OnnxParser(network, logger)
    log.at("parse")
    parsed = parser.parse_from_file(spec["onnx"])
    refused = [_refused(parser.get_error(i), log.node) for i in range(parser.num_errors)]
    answer = {"refused": refused, "failure": "", "layers": network.num_layers, "on_gpu": [], "argv": []}
    if not parsed:
        answer["failure"] = "" if refused else log.last or "the parser does not say why it refuses the graph"
        return answer
    config = builder.create_builder_config()
    _configure(trt, builder, network, config, spec, log, answer)
    log.at("build")
    data = builder.build_serialized_network(network, config)
    if data is None:
        answer["failure"] = log.last or "the builder made no engine and does not say why"
        return answer
    log.done(1.0)
    folder = spec["folder"]
    with open(os.path.join(folder, ENGINE), "wb") as file:
        file.write(memoryview(data))
        file.flush()
        os.fsync(file.fileno())
    cache = config.get_timing_cache() if spec.get("timing_cache") is not None else None
    if cache is not None:
        with open(os.path.join(folder, CACHE), "wb") as file:
            file.write(memoryview(cache.serialize()))
    log.at("inspect")
    _inspect(trt, logger, data, os.path.join(folder, LAYERS), log)
    return answer


def _configure(trt, builder, network, config, spec, log, answer):
    flags = trt.BuilderFlag
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, spec["workspace"])
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if not spec.get("tf32"):
        config.clear_flag(flags.TF32)
    if spec["typing"] == "weak":
        for name in spec["precisions"]:
            config.set_flag(getattr(flags, name.upper()))
        _keep_float32(trt, network, config, set(spec.get("float32") or ()))
    if spec["profiles"]:
        profile = builder.create_optimization_profile()
        for name, (low, usual, high) in spec["profiles"].items():
            profile.set_shape(name, low, usual, high)
        config.add_optimization_profile(profile)
    if spec.get("timing_cache") is not None:
        blob = b""
        if spec["timing_cache"]:
            with open(spec["timing_cache"], "rb") as file:
                blob = file.read()
        cache = config.create_timing_cache(blob)
        # One that was made by another version or GPU is not taken; an empty one always is.
        if cache is None or not config.set_timing_cache(cache, False):
            config.set_timing_cache(config.create_timing_cache(b""), False)
    if spec["dla"] >= 0:
        answer["on_gpu"] = _on_dla(trt, network, config, spec["dla"])
    if hasattr(trt, "IProgressMonitor"):
        config.progress_monitor = _monitor(trt, log)


def _keep_float32(trt, network, config, names):
    """What leaves float16's range, where the builder chooses precisions."""
    kept = 0
    for index in range(network.num_layers if names else 0):
        layer = network.get_layer(index)
        if layer.name in names or names.intersection(_metadata(layer)):
            layer.precision = trt.float32
            kept += 1
    if kept:
        config.set_flag(trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)


def _metadata(layer):
    return re.findall(r"\[ONNX Layer: ([^\]]*)\]", getattr(layer, "metadata", "") or "")


def _on_dla(trt, network, config, core):
    """Put everything on the DLA that it takes; returns the names of the layers that stay on the GPU."""
    config.default_device_type = trt.DeviceType.DLA
    config.DLA_core = core
    config.set_flag(trt.BuilderFlag.GPU_FALLBACK)
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    return [layer.name for layer in layers if not config.can_run_on_DLA(layer)]


def _inspect(trt, logger, data, path, log):
    """The layers as the engine's inspector tells them. An engine that cannot be loaded here is the host's to judge."""
    engine = trt.Runtime(logger).deserialize_cuda_engine(bytes(memoryview(data)))
    if engine is None:
        log.line("W", "the engine that was built cannot be loaded here")
        return
    text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


def _logger(trt, log):
    severities = {}
    for name, letter in (("INTERNAL_ERROR", "E"), ("ERROR", "E"), ("WARNING", "W"), ("INFO", "I")):
        severities[getattr(trt.ILogger, name)] = letter
    verbose = getattr(trt.ILogger, "VERBOSE", None)

    class Logger(trt.ILogger):
        def __init__(self):
            trt.ILogger.__init__(self)

        def log(self, severity, message):
            if severity in severities:
                log.line(severities[severity], message)
            elif severity == verbose:
                log.verbose(message)

    return Logger()


def _monitor(trt, log):
    """Shares of shares: a step of a phase may be a phase of its own."""
    phases = {}

    def share(name):
        steps, done, child = phases[name]
        inner = share(child) if child in phases else 0.0
        return min(1.0, (done + inner) / max(1, steps))

    class Monitor(trt.IProgressMonitor):
        def __init__(self):
            trt.IProgressMonitor.__init__(self)
            self._first = None

        def phase_start(self, phase_name, parent_phase, num_steps):
            phases[phase_name] = [num_steps, 0, None]
            self._first = self._first or phase_name
            if parent_phase in phases:
                phases[parent_phase][2] = phase_name
            log.at(phase_name)

        def step_complete(self, phase_name, step):
            if phase_name in phases:
                phases[phase_name][1] = step + 1
            if self._first in phases:
                log.done(share(self._first))
            return True

        def phase_finish(self, phase_name):
            phases.pop(phase_name, None)

    return Monitor()


def _refused(error, reads):
    """``reads``: the node that the parser read last."""

    def told(name):
        value = getattr(error, name, None)
        return str(value()) if callable(value) else ""

    node, op = told("node_name"), told("node_operator")
    if not (node or op) and not told("func").startswith("importInput"):
        node, op = reads
    return {"node": node, "op": op, "message": _first_line(error.desc())}


def _first_line(text):
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (lines or [""])[0][:2000]


# --- trtexec --------------------------------------------------------------------------------------

_LINE = re.compile(r"^(?:\[[^\]]*\d\d:\d\d:\d\d\] )?\[([VIWE])\] (.*)$")
_PHASES = (
    ("Start parsing", "parse"),
    ("Finish", "parsed"),
    ("Computing costs for", "time tactics"),
    ("Local timing cache in use", "time tactics"),
    ("Engine generation completed", "built"),
    ("Engine built in", "built"),
)


def _by_trtexec(spec, log):
    folder = spec["folder"]
    words = {
        "onnx": spec["onnx"],
        "engine": os.path.join(folder, ENGINE),
        "layers": os.path.join(folder, LAYERS),
        "cache": os.path.join(folder, CACHE),
        "workspace": str(max(16, spec["workspace"] >> 20)),
    }
    if spec.get("timing_cache"):
        shutil.copyfile(spec["timing_cache"], words["cache"])
    argv = [trtexec()] + [_filled(argument, words) for argument in spec["trtexec"]]
    answer = {"refused": [], "failure": "", "layers": 0, "on_gpu": [], "argv": ["trtexec", *spec["trtexec"]]}
    process = subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=folder
    )
    lines = []
    for raw in process.stdout:
        text = raw.decode("utf-8", "replace").rstrip("\n")
        found = _LINE.match(text)
        severity, message = found.groups() if found else ("I", text)
        log.line(severity, message)
        lines.append(message[:2000])
        del lines[:-20000]
        for mark, name in _PHASES:
            if mark in message:
                log.at(name)
    status = process.wait()
    answer["on_gpu"] = _gpu_layers(lines)
    if status:
        if shutil.disk_usage(folder).free < 1 << 20 or any("No space left" in line for line in lines[-50:]):
            raise OSError(errno.ENOSPC, "No space left on device")
        answer["refused"] = _refusals("\n".join(lines))
        why = _reason(log.errors) or "it ended with %d" % status
        answer["failure"] = "" if answer["refused"] else why
        return answer
    try:
        with open(words["layers"], encoding="utf-8") as file:
            answer["layers"] = len(json.load(file).get("Layers", ()))
    except (OSError, ValueError):
        pass
    return answer


def _filled(argument, words):
    """Not by str.format: names of the graph may have braces, too."""
    for name, value in words.items():
        argument = argument.replace("{%s}" % name, value)
    return argument


def _reason(errors):
    """The first error that says something: what follows are its consequences."""
    useful = [e for e in errors if not e.startswith(("Engine could not be", "Building engine failed"))]
    return _first_line((useful or errors or [""])[0])


_PARSING = re.compile(r"While parsing node number \d+ \[([^\s\]]*)")
_NAMES = (r"(?:^|\n)Node name: ([^\n]*)", r'name: "([^"\n]*)"[^\n]*\n[^\n]*op_type: "')
"""How a parser names the node: new ones (that of TensorRT for RTX 1.7) in words, those of 8 and 10 as ONNX's text."""
_REASONS = (
    r"(Assertion failed: [^\n]*)",
    r"(UNSUPPORTED_NODE[^\n]*)",
    r"\[\d+\] Invalid Node - [^\n]*\n([^\n]+)",
    r"ERROR: [^\n]*\n\[\d+\] ([^\n]*)",
)
"""What follows a node that the parser refuses, the most telling first."""


def _refusals(text):
    """The nodes that the parser refuses, as its log shows them: older ones stop at the first."""
    starts = list(_PARSING.finditer(text))
    ends = [found.start() for found in starts[1:]] + [len(text)]
    return [_refusal(found.group(1), text[found.end() : ends[i]]) for i, found in enumerate(starts)]


def _refusal(op, block):
    name = next(filter(None, (re.search(p, block) for p in _NAMES)), None)
    reason = next(filter(None, (re.search(p, block) for p in _REASONS)), None)
    message = reason.group(1) if reason else "the parser stopped at it"
    return {"node": name.group(1) if name else "", "op": op, "message": message.strip()[:2000]}


def _gpu_layers(lines):
    """Names of the layers on the GPU, where the log tells the DLA's from these."""
    on_dla = any("Layers Running on DLA" in line for line in lines)
    marked = [line.partition("[GpuLayer]")[2] for line in lines if "[GpuLayer]" in line]
    return [m.partition(": ")[2].strip() or m.strip() for m in marked] if on_dla else []


def _sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()
