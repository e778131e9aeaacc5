"""An NVIDIA device for tests: a real sshd, and stand-ins for TensorRT and its driver (see ``standins/README.md``)."""

from __future__ import annotations

import json
import os
import shutil
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from testbed.sshd import UID, Sshd

STANDINS = Path(__file__).parent / "standins"


@dataclass(kw_only=True)
class Jetson(Sshd):
    """``generation`` is one of ``standins/generations.py``; ``device`` changes what that says, or how it behaves:
    ``no_python``, ``no_trtexec``, ``no_gpu``, ``seconds`` a build takes, ``fails`` with these words, ``refuses`` these
    operators, ``pad`` bytes added to an engine."""

    generation: str = "jetpack6"
    device: Mapping[str, Any] = field(default_factory=dict)

    def __enter__(self) -> Jetson:
        packages = "{base}/packages" if os.geteuid() == 0 else sysconfig.get_paths()["purelib"]
        self.environment = {
            **self.environment,
            "EDGEKIT_STANDIN": self.generation,
            "EDGEKIT_ROOT": "{base}/root",
            "PYTHONPATH": "{base}/standins:" + packages,
        }
        super().__enter__()
        return self

    def _prepare(self) -> None:
        super()._prepare()
        folder = self.base / "standins"
        shutil.copytree(STANDINS, folder, ignore=shutil.ignore_patterns("__pycache__"))
        self.behave(**self.device)
        (folder / "asked.jsonl").touch()
        if os.geteuid() == 0:
            os.chown(folder / "asked.jsonl", UID, UID)
        root = self.base / "root"
        known = self._generation()
        if known["driver"]:
            path = root / "proc" / "driver" / "nvidia" / "version"
            path.parent.mkdir(parents=True)
            path.write_text(
                f"NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  {known['driver']}  Release\n"
            )
        if known["release"]:
            number, revision = known["release"].split()
            (root / "etc").mkdir(parents=True)
            (root / "etc" / "nv_tegra_release").write_text(
                f"# R{number} (release), REVISION: {revision}, GCID: 0\n"
            )
        if not self.device.get("no_trtexec"):
            tool = root / "usr" / "src" / "tensorrt" / "bin" / "trtexec"
            tool.parent.mkdir(parents=True)
            tool.write_text(f'#!/bin/sh\nexec {self.python} {folder}/trtexec.py "$@"\n')
            tool.chmod(0o755)

    def _generation(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        exec((STANDINS / "generations.py").read_text(), found)
        return {**found["GENERATIONS"][self.generation], **self.device}

    def behave(self, **device: Any) -> None:
        """From now on the device is so."""
        (self.base / "standins" / "device.json").write_text(json.dumps(device))

    def asked(self) -> list[dict[str, Any]]:
        """What was asked of TensorRT there."""
        lines = (self.base / "standins" / "asked.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]
