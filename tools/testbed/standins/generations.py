"""What each generation of devices has: versions, and what its TensorRT knows. A stand-in, see README.md."""

import json
import os

GENERATIONS = {
    "jetpack5": {
        "version": "8.5.2",
        "gpu": "Orin",
        "cc": [8, 7],
        "release": "35 4.1",
        "driver": "",
        "dla": 2,
    },
    "jetpack5-8.6": {
        "version": "8.6.2",
        "gpu": "Orin",
        "cc": [8, 7],
        "release": "35 5.0",
        "driver": "",
        "dla": 2,
    },
    "jetpack6": {
        "version": "10.3.0",
        "gpu": "Orin",
        "cc": [8, 7],
        "release": "36 4.0",
        "driver": "540.4.0",
        "dla": 2,
    },
    "jetpack7": {
        "version": "10.13.3",
        "gpu": "Thor",
        "cc": [11, 0],
        "release": "38 2.0",
        "driver": "580.00",
        "dla": 0,
    },
    "desktop10": {
        "version": "10.9.0",
        "gpu": "NVIDIA RTX A4000",
        "cc": [8, 6],
        "release": "",
        "driver": "550.54.15",
        "dla": 0,
    },
    "desktop11": {
        "version": "11.0.0",
        "gpu": "NVIDIA L4",
        "cc": [8, 9],
        "release": "",
        "driver": "590.10.01",
        "dla": 0,
    },
}


def here():
    """This device: its generation, changed by what ``device.json`` says."""
    found = dict(GENERATIONS[os.environ["EDGEKIT_STANDIN"]])
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "device.json")
    if os.path.exists(path):
        with open(path) as file:
            found.update(json.load(file))
    return found


def release(version):
    """``"8.5.2"`` → ``(8, 5)``."""
    return tuple(int(n) for n in version.split(".")[:2])


def note(**entry):
    """One line more in what was asked of this device."""
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "asked.jsonl")
    with open(path, "a") as file:
        file.write(json.dumps(entry) + "\n")
