"""What an engine was built from and for, and whether it may be loaded: asked before anything reads it.

``engine.json`` beside an engine is the record; the runner on the device asks the same once more
(``targets/nvidia/runner_key.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from edgekit.core import files
from edgekit.core.store import canonical_json
from edgekit.core.structure import to_builtins
from edgekit.errors import EngineMismatchError
from edgekit.types import Json, sha256_bytes, sha256_file

RECORD = "engine.json"
SCHEMA = 1


def release(version: str) -> tuple[int, int]:
    """``"8.5.2.2"`` → ``(8, 5)``."""
    major, minor = (int(part) for part in version.split(".")[:2])
    return major, minor


@dataclass(frozen=True, kw_only=True)
class EngineKey:
    """What an engine belongs to: one graph, one runtime with its flags, one GPU and its driver.

    ``compute_capabilities`` as ``"8.7"``. An engine of TensorRT for RTX, which is compiled to the end on the GPU that
    runs it, has no ``gpu`` and no ``driver``, and any number of compute capabilities.
    """

    graph_sha256: str
    runtime: str
    version: str
    gpu: str = ""
    compute_capabilities: tuple[str, ...] = ()
    driver: str = ""
    flags: Mapping[str, Json] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """sha256 over all of it."""
        return sha256_bytes(canonical_json(self))

    def differences(self, wanted: EngineKey) -> tuple[str, ...]:
        """What does not fit ``wanted``, in words; what this key leaves open fits everything, but for the driver of an
        engine of TensorRT: it is left open only where the device did not tell it, either."""
        found = [
            f"it was built for {f'the {what} {mine}' if mine else f'no {what} that its record names'}, and this is "
            f"{theirs or 'not known'}"
            for what, mine, theirs in (
                ("runtime", self.runtime, wanted.runtime),
                ("version", self.version, wanted.version),
                ("GPU", self.gpu, wanted.gpu),
                ("driver", self.driver, wanted.driver),
            )
            if (mine or (what == "driver" and self.runtime == "tensorrt")) and mine != theirs
        ]
        if self.compute_capabilities and not set(wanted.compute_capabilities) <= set(
            self.compute_capabilities
        ):
            found.append(
                f"it was built for compute capability {', '.join(self.compute_capabilities)}, and this is "
                f"{', '.join(wanted.compute_capabilities) or 'not known'}"
            )
        if wanted.graph_sha256 and self.graph_sha256 != wanted.graph_sha256:
            found.append(
                f"it was built from another graph ({self.graph_sha256[:12]}, not {wanted.graph_sha256[:12]})"
            )
        return tuple(found)


class _Record(msgspec.Struct, frozen=True):
    """The file."""

    schema: int
    sha256: str
    size: int
    graph_sha256: str
    runtime: str
    version: str
    gpu: str = ""
    compute_capabilities: tuple[str, ...] = ()
    driver: str = ""
    flags: dict[str, Json] = {}


def write_record(engine: Path, key: EngineKey) -> Path:
    """Write ``engine.json`` beside ``engine``."""
    path = engine.with_name(RECORD)
    document = {"schema": SCHEMA, "sha256": sha256_file(engine), "size": engine.stat().st_size}
    files.write(path, canonical_json({**document, **to_builtins(key)}) + b"\n")
    return path


def read_key(engine: Path) -> EngineKey:
    """What the engine says it was built from and for; its content is as it was built.

    Raises :class:`EngineMismatchError` where nothing says so, or where the engine is not what was built.
    """
    name = engine.name
    try:
        record = msgspec.json.decode(files.read(engine.with_name(RECORD), most=1 << 20), type=_Record)
    except (OSError, msgspec.MsgspecError, RecursionError) as error:
        raise EngineMismatchError(
            f"nothing says what {name} was built for: {RECORD} beside it is missing or damaged"
        ) from error
    if record.schema != SCHEMA:
        raise EngineMismatchError(f"{name} was built by another edgekit: {RECORD} has schema {record.schema}")
    if blank := _blank(record):
        raise EngineMismatchError(
            f"{RECORD} beside {name} does not say of its {', '.join(blank)}: it is damaged", differences=blank
        )
    size = engine.stat().st_size
    if size != record.size:
        raise EngineMismatchError(
            f"{name} has {size:,} bytes, and {record.size:,} were built", differences=("size",)
        )
    if sha256_file(engine) != record.sha256:
        raise EngineMismatchError(f"{name} is not what was built: it was altered", differences=("sha256",))
    return EngineKey(
        graph_sha256=record.graph_sha256,
        runtime=record.runtime,
        version=record.version,
        gpu=record.gpu,
        compute_capabilities=record.compute_capabilities,
        driver=record.driver,
        flags=record.flags,
    )


def _blank(record: _Record) -> tuple[str, ...]:
    """What a build writes and this record lacks: an engine of TensorRT for RTX alone is for GPUs of every name."""
    names: tuple[str, ...] = ("runtime", "version")
    if record.runtime != "tensorrt_rtx":
        names += ("gpu", "compute_capabilities")
    return tuple(name for name in names if not getattr(record, name))


def refuse_mismatch(engine: Path, wanted: EngineKey, *, where: str) -> None:
    """Raise :class:`EngineMismatchError` for an engine that is damaged, or does not fit ``wanted``."""
    found = read_key(engine).differences(wanted)
    if found:
        raise EngineMismatchError(
            f"{engine.name} is not for {where}: {'; '.join(found)}. It was not loaded", differences=found
        )
