"""What phones say of themselves, and what adb says of them."""

import pytest

from edgekit.devices.catalogue import kind_of
from edgekit.devices.health import assess
from edgekit.devices.protocol import builtins
from edgekit.devices.transports.adb import AdbOptions
from edgekit.devices.transports.adb_client import parse_devices
from edgekit.devices.transports.android import facts, state
from edgekit.devices.wire import Battery, DeviceFacts
from edgekit.errors import UsageError

FACTS = """@ro.product.manufacturer samsung
@ro.product.model SM-S921B
@ro.soc.manufacturer Samsung
@ro.soc.model s5e9945
@ro.product.cpu.abi arm64-v8a
@ro.build.version.release 16
@ro.hardware s5e9945
@ro.kernel.qemu
@ro.boot.qemu
@uname Linux 6.1.75-android14
@arch aarch64
@boot 3f6c
@processors 10
@max 1959000
@governor energy_aware
@max 3207000
@governor energy_aware
MemTotal:        7563456 kB
Features\t: fp asimd asimddp asimdhp i8mm bf16
Features\t: fp asimd asimddp asimdhp i8mm bf16
"""

STATE = """@now 1024000
@cap 1959000
@now
@cap 2400000
@load 1.00 0.9 0.8 1/900 1
@section thermal
IsStatusOverride: false
Thermal Status: {status}
Cached temperatures:
\tTemperature{{mValue=99.0, mType=0, mName=OLD, mStatus=0}}
Current temperatures from HAL:
\tTemperature{{mValue=45.2, mType=0, mName=CPU0, mStatus=0}}
\tTemperature{{mValue=36.1, mType=3, mName=skin, mStatus=0}}
\tTemperature{{mValue=29.0, mType=2, mName=BAT, mStatus=0}}
@section battery
Current Battery Service state:
  USB powered: true
  status: {charge}
  level: 64
  temperature: 295
"""


def test_facts():
    found = facts(FACTS)
    assert found.model == "samsung SM-S921B"
    assert found.processor == "Samsung s5e9945"
    assert (found.arch, found.os, found.abi) == ("aarch64", "Android 16", "arm64-v8a")
    assert found.isa == ("bf16", "dotprod", "i8mm", "fp16")
    assert found.memory == 7563456 * 1024
    assert found.max_khz == (1959000, 3207000)
    assert found.governors == ("energy_aware",)
    assert found.emulated is False
    assert facts(FACTS.replace("@ro.hardware s5e9945", "@ro.hardware ranchu")).emulated is True
    assert facts("").processors == 1


def test_state():
    found = state(STATE.format(status=0, charge=2))
    assert found.celsius == {"CPU0": 45.2, "skin": 36.1}
    assert found.khz == (1024000,)
    assert found.cap_khz == (1959000, 2400000)
    assert found.battery == Battery(percent=64, status="Charging")
    assert found.cooling == {}
    older = STATE.format(status=0, charge=2).split("@section thermal")[0] + "@section thermal\n"
    assert state(older + "@section battery\n  level: 5\n  status: 3\n  temperature: 312\n").celsius == {
        "battery": 31.2
    }
    assert set(builtins(state(""))) == {"time"}


def test_a_hot_phone_spoils_the_measurement():
    cool, hot = (state(STATE.format(status=n, charge=3)) for n in (1, 3))
    assert not assess(DeviceFacts(), [cool]).throttled
    health = assess(DeviceFacts(), [cool, hot])
    assert health.throttled
    assert "severe" in health.invalid[0]
    assert any("battery" in reason for reason in health.noisy)


def test_the_list_of_devices():
    text = """* daemon started successfully
List of devices attached
R5CW31ABCDE            device usb:1-2 product:e1sxeea model:SM_S921B device:e1s transport_id:4
192.168.1.7:5555       offline product:shiba transport_id:2
0123456789ABCDEF       no permissions (missing udev rules? user is in the plugdev group); see [http://x]
emulator-5554          unauthorized transport_id:1

"""
    found = [(s.serial, s.state, s.model) for s in parse_devices(text)]
    assert found == [
        ("R5CW31ABCDE", "device", "SM_S921B"),
        ("192.168.1.7:5555", "offline", ""),
        ("0123456789ABCDEF", "no permissions", ""),
        ("emulator-5554", "unauthorized", ""),
    ]


@pytest.mark.parametrize("serial", ["-x", "a b", "a\nb"])
def test_serial_numbers_that_are_none(serial):
    with pytest.raises(UsageError):
        AdbOptions(serial=serial)
    with pytest.raises(UsageError):
        AdbOptions(folder="relative")


@pytest.mark.parametrize(
    ("transport", "found", "kind"),
    [
        ("adb", {"os": "Android 16", "model": "Google Pixel 8"}, "pixel"),
        ("adb", {"os": "Android 16", "model": "samsung SM-S921B"}, "galaxy"),
        ("adb", {"os": "Android 13", "model": "Fairphone FP5"}, "android"),
        ("adb", {"os": "Linux 6.1", "model": ""}, "linux-adb"),
        ("ssh", {"os": "Linux 6.1", "model": "Raspberry Pi 5"}, "linux-ssh"),
    ],
)
def test_kinds_by_what_a_device_says(transport, found, kind):
    assert kind_of(transport, DeviceFacts(**found)) == kind
