"""What a build learns of its device: instruction sets, the scheme for them, what is missing there."""

import pytest

from edgekit.core import targets
from edgekit.core.structure import structure
from edgekit.devices.agent.state import isa
from edgekit.devices.checkup import RuntimeCheck
from edgekit.devices.target_device import TargetDevice, adaptation, adapted
from edgekit.devices.wire import DeviceFacts
from edgekit.errors import ConfigError, RuntimeMissingError
from edgekit.types import Adaptation, Device, Precision, Scheme, Target

XEON = "flags\t\t: fpu sse4_2 avx2 avx512f avx512_vnni avx512_bf16 amx_int8\n"
OLD = "flags\t\t: fpu sse4_2 avx2\n"
A76 = "Features\t: fp asimd evtstrm aes crc32 atomics fphp asimdhp asimddp\n"
A72 = "Features\t: fp asimd evtstrm aes crc32\n"


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        (XEON, ["avx2", "avx512", "vnni", "amx", "bf16"]),
        (OLD, ["avx2"]),
        (A76 * 4, ["dotprod", "fp16"]),
        (A76 + A72, []),  # what only some cores have, no kernel may use
        ("vmx flags\t: vnni\n", []),
        ("", []),
    ],
)
def test_instruction_sets(cpuinfo, expected):
    assert isa(cpuinfo) == expected


def board(arch, *sets, runtimes=None, **facts):
    facts = DeviceFacts(arch=arch, isa=sets, os="Linux 6.1", **facts)
    return TargetDevice(device=Device(name="board"), facts=facts, runtimes=runtimes or {})


def row(*on):
    return Target(
        name="t",
        backend="onnxruntime",
        precision=Precision.INT8,
        runs_on="cpu",
        file="m",
        scheme=Scheme(activation="uint8", weight="int8"),
        on=on,
    )


def test_the_first_adaptation_that_fits_is_taken():
    seven = Adaptation(arch="x86_64", lacks=("vnni",), weight_bits=7, why="they saturate")
    signed = Adaptation(arch="aarch64", has=("dotprod",), activation="int8", why="sdot")
    target = row(seven, signed)
    assert adapted(target, board("x86_64", "avx2")).scheme == Scheme(
        activation="uint8", weight="int8", weight_bits=7, why="they saturate"
    )
    assert adapted(target, board("aarch64", "dotprod", "fp16")).scheme.activation == "int8"
    for untouched in (board("x86_64", "avx2", "vnni"), board("aarch64"), board("armv7l", "dotprod")):
        assert adapted(target, untouched) is target


def test_the_catalogue_narrows_weights_where_products_saturate():
    """UINT8 x INT8 on x86 without VNNI adds pairs in 16 bits."""
    found = {
        t.name: adapted(t, board("x86_64", "avx2")).scheme.weight_bits
        for t in targets.known().values()
        if t.scheme is not None and t.scheme.activation == "uint8"
    }
    assert found
    assert set(found.values()) == {7}
    openvino = targets.find("openvino-int8")
    old = adapted(openvino, board("aarch64", "fp16")).scheme
    assert (old.activation, old.activation_symmetric, old.weight_bits) == ("int8", True, 8)
    assert adapted(openvino, board("aarch64", "dotprod")) is openvino
    tflite = targets.find("tflite-int8")
    assert adaptation(tflite, board("x86_64", "avx2")) is None


def test_a_row_with_a_mistake_is_refused():
    with pytest.raises(ConfigError):
        structure(
            Target,
            {"name": "t", "backend": "b", "precision": "fp32", "runs_on": "cpu", "file": "m", "on": [{}]},
            where="rows",
        )


def test_what_is_not_installed_there_is_refused_with_the_way_to_mend_it():
    check = RuntimeCheck(backend="onnxruntime", problem="missing", hint="edgekit devices prepare board")
    there = board("aarch64", runtimes={"onnxruntime": check})
    with pytest.raises(RuntimeMissingError, match="board") as caught:
        there.refuse(row())
    assert caught.value.hint == "edgekit devices prepare board"
    no_gpu = RuntimeCheck(backend="onnxruntime", versions={"x": "1"}, problem="no GPU")
    board("aarch64", runtimes={"onnxruntime": no_gpu}).refuse(row())  # the run itself tells: not-run


def test_the_machine_of_the_manifest():
    assert board("aarch64", "dotprod", emulated=True, usable_processors=4, python="3.11.2").machine() == {
        "device": "board",
        "processor": "",
        "machine": "aarch64",
        "model": "",
        "isa": "dotprod",
        "system": "Linux",
        "cpus": 4,
        "python": "3.11.2",
        "emulated": True,
    }
