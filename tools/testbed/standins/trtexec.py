"""Stands in for NVIDIA's program of this name: takes the arguments of its release and no others. See README.md."""

import json
import os
import sys
import time

import fake_parser
import generations

DEVICE = generations.here()
RELEASE = generations.release(DEVICE["version"])


def tag():
    parts = [int(n) for n in DEVICE["version"].split(".")]
    if parts[0] < 10:
        return "v%d%d0%d" % tuple(parts)
    return "v%d%02d%02d" % tuple(parts)


def known():
    names = {
        "onnx",
        "saveEngine",
        "noTF32",
        "minShapes",
        "optShapes",
        "maxShapes",
        "memPoolSize",
        "timingCacheFile",
    }
    names |= {"profilingVerbosity", "exportLayerInfo", "useDLACore", "allowGPUFallback", "help", "loadEngine"}
    names |= {"buildOnly"} if RELEASE < (8, 6) else {"skipInference"}
    names |= {"stronglyTyped"} if RELEASE >= (9, 0) else set()
    if RELEASE < (11, 0):
        names |= {"fp16", "int8", "precisionConstraints", "layerPrecisions"}
        names |= {"bf16"} if RELEASE >= (9, 0) else set()
        names |= {"fp8"} if RELEASE >= (8, 6) else set()
    return names


def say(severity, text, source=""):
    """Only a message's first line gets the time."""
    print("[11/30/2026-12:00:00] [%s] %s%s" % (severity, source, text), flush=True)


def node_text(refused):
    """As TensorRT for RTX 1.7 names a node, which has the parser of 10.15; as the public logs of 8 and 10.13 do."""
    if RELEASE >= (11, 0):
        return "Node name: %s" % refused.node
    return 'input: "x"\noutput: "y"\nname: "%s"\nop_type: "%s"\n' % (refused.node, refused.op)


def ended(how, status):
    print("&&&& %s TensorRT.trtexec [TensorRT %s] # trtexec" % (how, tag()), flush=True)
    sys.exit(status)


def main():
    print("&&&& RUNNING TensorRT.trtexec [TensorRT %s] # %s" % (tag(), " ".join(sys.argv)), flush=True)
    given = {a[2:].partition("=")[0]: a.partition("=")[2] for a in sys.argv[1:]}
    if "help" in given:
        sys.exit(0)
    for name in given:
        if name not in known():
            say("E", "Unknown option: --%s %s" % (name, given[name]))
            ended("FAILED", 1)
    generations.note(call="trtexec", argv=sys.argv[1:])
    say("I", "=== Device Information ===")
    say("I", "Selected Device: %s" % DEVICE["gpu"])
    say("I", "Compute Capability: %d.%d" % tuple(DEVICE["cc"]))
    say("I", "Start parsing network model.")
    try:
        model = fake_parser.parse(given["onnx"], DEVICE)
    except fake_parser.Refused as refused:
        source = "[TRT] ModelImporter.cpp:771: "
        say("E", 'While parsing node number 4 [%s -> "y"]:' % refused.op, source)
        say("E", "--- Begin node ---\n" + node_text(refused), source)
        say("E", "--- End node ---", source)
        say("E", "ERROR: ModelImporter.cpp:195 In function parseNode:\n[6] %s" % refused.message, source)
        say("E", "Failed to parse onnx file")
        ended("FAILED", 1)
    say("I", "Finished parsing network model. Parse time: 0.01")
    say(
        "I", "Local timing cache in use. Profiling results in this builder pass will not be stored.", "[TRT] "
    )
    time.sleep(float(DEVICE.get("seconds", 0)))
    if DEVICE.get("fails"):
        say("E", DEVICE["fails"], "[TRT] ")
        say("E", "Engine could not be created from network")
        say("E", "Building engine failed")
        ended("FAILED", 1)
    if "useDLACore" in given:
        say("I", "---------- Layers Running on DLA ----------", "[TRT] ")
        say("I", "[DlaLayer] {ForeignNode[%s...]}" % model.graph.node[0].name, "[TRT] ")
        say("I", "---------- Layers Running on GPU ----------", "[TRT] ")
        for node in model.graph.node:
            if node.op_type not in ("Conv", "Relu", "QuantizeLinear", "DequantizeLinear"):
                say("I", "[GpuLayer] %s: %s" % (node.op_type.upper(), node.name), "[TRT] ")
    flags = {
        "weak": sorted(n for n in ("fp16", "int8", "bf16", "fp8") if n in given),
        "strong": "stronglyTyped" in given,
    }
    data = fake_parser.engine_of(given["onnx"], flags, DEVICE) + b"\0" * int(DEVICE.get("pad", 0))
    try:
        with open(given["saveEngine"], "wb") as file:
            file.write(data)
        with open(given["exportLayerInfo"], "w") as file, open(given["onnx"], "rb") as graph:
            json.dump({"Layers": fake_parser.layers_of(graph.read(), flags["weak"]), "Bindings": []}, file)
        with open(given["timingCacheFile"], "ab") as file:
            file.write(b"times of kernels on " + DEVICE["gpu"].encode())
    except OSError as error:
        os.unlink(given["saveEngine"])
        say("E", "Could not save the engine: %s" % error.strerror)
        ended("FAILED", 1)
    say("I", "Engine built in 0.5 sec.")
    ended("PASSED", 0)


if __name__ == "__main__":
    main()
