"""The messages between host and device: the jobs that are sent, and what comes back, by type and range.

A device is not trusted. Whatever it sends becomes one of these structs or an error (:mod:`edgekit.devices.protocol`
reads it): numbers are finite and within bounds, nesting and length are limited. What the fields mean is said where the
agent fills them (:mod:`edgekit.devices.agent`).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import Meta

from edgekit.types import Json, Option

Text: TypeAlias = Annotated[str, Meta(max_length=1 << 17)]
Output: TypeAlias = Annotated[str, Meta(max_length=1 << 24)]
Count: TypeAlias = Annotated[int, Meta(ge=0, le=1 << 60)]
Whole: TypeAlias = Annotated[int, Meta(ge=-(1 << 60), le=1 << 60)]
Number: TypeAlias = Annotated[float, Meta(ge=-1e15, le=1e15)]
Time: TypeAlias = Annotated[float, Meta(ge=0, le=1e12)]
"""A duration, or seconds since the epoch: never negative, never NaN or infinite (JSON knows neither)."""
Share: TypeAlias = Annotated[float, Meta(ge=0, le=1)]
Bytes: TypeAlias = Annotated[int, Meta(ge=0, le=1 << 50)]
Hertz: TypeAlias = Annotated[int, Meta(ge=0, le=10**12)]
Celsius: TypeAlias = Annotated[float, Meta(ge=-274, le=10_000)]
Threads: TypeAlias = Annotated[int, Meta(ge=0, le=1 << 16)]
Processors: TypeAlias = Annotated[
    tuple[Annotated[int, Meta(ge=0, le=1 << 16)], ...], Meta(max_length=1 << 16)
]
Clocks: TypeAlias = Annotated[tuple[Hertz, ...], Meta(max_length=1 << 16)]
Words: TypeAlias = Annotated[tuple[Text, ...], Meta(max_length=4096)]
Part: TypeAlias = Annotated[int, Meta(ge=0, le=999)]
"""Of a version's number."""
_FEW = Meta(max_length=4096)
"""So many versions, sensors or rails a device may have: what it says of itself is kept with each measurement."""
Times: TypeAlias = Annotated[tuple[Time, ...], Meta(min_length=1, max_length=1 << 20)]


class Message(msgspec.Struct, frozen=True):
    """The base of all of them. Fields that are not known are ignored."""


# --- to the device --------------------------------------------------------------------------------------


class Stream(Message, frozen=True):
    """A file of samples (see ``agent/arrays.py``): where it is there, its arrays' names in order, how many samples."""

    path: str
    names: tuple[str, ...] = ()
    count: int = 0


class BenchJob(Message, frozen=True):
    """As long as :class:`edgekit.backends.base.Timing` asks for."""

    seconds: float
    iterations: int
    max_iterations: int
    warmup_s: float


class ProfileJob(Message, frozen=True):
    """How many runs to profile, after how many others."""

    runs: int
    warmup: int


class SoakJob(Message, frozen=True):
    """For how long to call the model, in how many windows its figures come, and how often to load it again."""

    seconds: float
    windows: int
    reloads: int


class Fed(Message, frozen=True):
    """An input that takes an output of the step before; ``channels``: they are ``first`` or ``last`` in the input, and
    the other way round in the output (empty: both are alike)."""

    input: str
    output: str
    channels: Literal["", "first", "last"] = ""


class Job(Message, frozen=True):
    """What one fresh process does; ``scratch`` is the folder for what it leaves behind."""

    action: Literal["probe", "run", "bench", "soak", "profile", "program", "identify", "build"]
    scratch: str = ""
    model: str = ""
    options: Mapping[str, Option] = {}
    cpus: tuple[int, ...] = ()
    inputs: Stream | None = None
    outputs: Stream | None = None
    fed: tuple[Fed, ...] = ()
    quantize: bool = False
    placement: bool = False
    bench: BenchJob | None = None
    profile: ProfileJob | None = None
    soak: SoakJob | None = None
    argv: tuple[str, ...] = ()
    file: str = ""
    engine: Mapping[str, Json] | None = None


class Owner(Message, frozen=True):
    """Who holds a device's lock, and since when (seconds since the epoch, by their clock). ``plan`` is the run that it
    is held for, where that may go on without its host."""

    user: Text = "somebody"
    host: Text = "an unknown host"
    pid: Whole | None = None
    since: Number | None = None
    plan: Text = ""


class PlannedTask(Message, frozen=True):
    """One of a plan's processes; the word ``{python}`` stands for the supervisor's own interpreter."""

    id: str
    argv: tuple[str, ...]
    job: Job
    timeout: float


class Plan(Message, frozen=True):
    """What the supervisor is asked for (see ``agent/supervisor.py``)."""

    tasks: tuple[PlannedTask, ...]
    journal: str
    heartbeat: float
    lock: Owner | None = None
    state_s: float = 0.0
    governor: str = ""
    linger: float = 0.0


class WheelFile(Message, frozen=True):
    """A wheel that lies on the device, and a record of one that was installed there."""

    sha256: Text
    name: Text = ""
    version: Text = ""
    path: str = ""


class Installation(Message, frozen=True):
    """A request to ``agent/installer.py``."""

    action: Literal["describe", "install", "remove"]
    backend: str = ""
    wheels: tuple[WheelFile, ...] = ()
    unpacked: int = 0


# --- the device itself ------------------------------------------------------------------------------------


class DeviceFacts(Message, frozen=True, omit_defaults=True):
    """What a device is (``agent/state.py``; a phone's shell tells less). ``emulated``: its latency says nothing."""

    arch: Text = ""
    os: Text = ""
    model: Text = ""
    processor: Text = ""
    abi: Text = ""
    isa: Words = ()
    processors: Threads = 0
    usable_processors: Threads = 0
    memory: Bytes | None = None
    python: Text = ""
    executable: Text = ""
    libc: Text = ""
    boot_id: Text = ""
    governors: Words = ()
    max_khz: Clocks = ()
    trips_celsius: Annotated[dict[Text, Celsius], _FEW] = {}
    emulated: bool = False
    power_mode: Text = ""
    clocks: Text = ""


class Battery(Message, frozen=True, omit_defaults=True):
    """Charge in percent, and whether it discharges."""

    percent: Annotated[int, Meta(ge=0, le=1000)] | None = None
    status: Text = ""


class DeviceState(Message, frozen=True, omit_defaults=True):
    """How a device is at one moment: ``time`` by its own clock in seconds since the epoch."""

    time: Time = 0.0
    load: Time | None = None
    khz: Clocks = ()
    cap_khz: Clocks = ()
    governors: Words = ()
    celsius: Annotated[dict[Text, Celsius], _FEW] = {}
    cooling: Annotated[dict[Text, Count], _FEW] = {}
    throttled: Count = 0
    rails_mw: Annotated[dict[Text, Number], _FEW] = {}
    gpu_hz: Clocks = ()
    battery: Battery | None = None
    thermal_status: Text = ""


class DeviceReport(Message, frozen=True):
    """What a device is, and how it is now."""

    facts: DeviceFacts
    state: DeviceState


# --- events of one job ------------------------------------------------------------------------------------


class FailureKind(enum.StrEnum):
    """Why a job failed, as the agent sees it."""

    MISSING = "missing"
    UNLOADABLE = "unloadable"
    UNUSABLE = "unusable"
    PROCESSORS = "processors"
    PROGRAM = "program"
    DISK = "disk"
    INPUT = "input"
    LOAD = "load"
    ENGINE = "engine"
    BUILD = "build"
    INVOKE = "invoke"
    INTERNAL = "internal"


class Failure(Message, frozen=True):
    """The last event of a job that did not go well."""

    kind: FailureKind = FailureKind.INTERNAL
    message: Text = ""
    traceback: Text = ""
    errno: Whole | None = None


class Phase(Message, frozen=True):
    """What is tried next."""

    name: Text


class Versions(Message, frozen=True):
    """Of the runtime and of what it is made of, by distribution."""

    versions: Annotated[dict[Text, Text], _FEW]


class Ready(Message, frozen=True):
    """The model was loaded with these options."""

    options: Annotated[dict[Text, Option], _FEW] = {}


class Progress(Message, frozen=True):
    """How many samples are done."""

    done: Count


class ProbeAnswer(Message, frozen=True):
    """What a runner's ``probe()`` says."""

    usable: bool = False
    why_not: Text = "it cannot be used"


class ProbeResult(Message, frozen=True):
    """Of the action ``probe``."""

    probe: ProbeAnswer
    versions: Annotated[dict[Text, Text], _FEW]


class Port(Message, frozen=True):
    """An input or output of a loaded model, as its runtime tells it: the names it goes by there, and its shape with
    ``None`` where a size is open. ``scale`` and ``zero_point`` as in :class:`edgekit.types.TensorSpec`."""

    names: Words
    dtype: Text
    shape: Annotated[tuple[Whole | None, ...], Meta(max_length=64)]
    scale: Number | None = None
    zero_point: Whole | None = None


class RunResult(Message, frozen=True):
    """Of the action ``run``: ``done`` samples with these outputs. ``inputs`` and ``outputs``: what each of the asked
    names is in the model."""

    done: Count
    names: Words
    placement: dict[Text, Json] | None = None
    seconds: Annotated[dict[Text, Time], _FEW] = {}
    inputs: Annotated[dict[Text, Port], _FEW] = {}
    outputs: Annotated[dict[Text, Port], _FEW] = {}


class PhaseMemory(Message, frozen=True, omit_defaults=True):
    """Bytes of one phase, where the kernel tells (``agent/memory.py``)."""

    rss: Bytes | None = None
    peak: Bytes | None = None
    pss: Bytes | None = None
    private_dirty: Bytes | None = None


class Memory(Message, frozen=True, omit_defaults=True):
    """By phase; ``resettable``: each peak is the phase's own. ``device``: of a GPU or NPU."""

    phases: Annotated[dict[Text, PhaseMemory], _FEW] = {}
    resettable: bool = False
    device: Annotated[dict[Text, Bytes], _FEW] | None = None


class Contention(Message, frozen=True):
    """How much of the machine the process had while it was timed (``agent/contention.py``)."""

    wall_s: Time | None = None
    cpu_s: Time | None = None
    cpu_per_wall: Annotated[float, Meta(ge=0, le=1 << 16)] | None = None
    pressure: Share | None = None
    steal: Share | None = None
    preempted: Count | None = None


class Warmup(Message, frozen=True):
    """Whether two neighbouring windows agreed, and the windows' medians."""

    stable: bool = False
    windows_ms: Annotated[tuple[Time, ...], Meta(max_length=1 << 20)] = ()


class BenchResult(Message, frozen=True):
    """Of the action ``bench``; ``steady``: when the clock ran, by the device's clock. ``gpu_ms``: inferences after
    that, by the GPU's own events, where there is one."""

    first_ms: Time
    samples_ms: Times
    steady: tuple[Time, Time]
    seconds: Annotated[dict[Text, Time], _FEW]
    threads: Threads
    warmup: Warmup = Warmup()
    contention: Contention = Contention()
    memory: Memory = Memory()
    affinity: Processors = ()
    gpu_ms: Annotated[tuple[Time, ...], Meta(max_length=1 << 20)] = ()


class ProfiledOperator(Message, frozen=True, rename={"origin": "from"}):
    """One operator; ``us`` is absent where the runtime tells only the placement."""

    name: Text
    op: Text
    placed: Text
    precision: Text
    origin: Words = ()
    us: Times | None = None


class ProfileReport(Message, frozen=True):
    """What a session's ``profile`` says."""

    operators: Annotated[tuple[ProfiledOperator, ...], Meta(max_length=1 << 20)]
    whole_us: Times
    notes: Words = ()


class ProfileResult(Message, frozen=True):
    """Of the action ``profile``."""

    profile: ProfileReport
    threads: Threads


class EngineHost(Message, frozen=True):
    """Of the action ``identify``: what engines are built and run by there (``targets/nvidia/runner_build.py``). ``via``
    are the ways to build, ``python`` before ``trtexec``; ``memory`` in bytes."""

    gpu: Text
    compute_capability: tuple[Part, Part]
    tensorrt: Annotated[str, Meta(pattern=r"^[0-9]+(\.[0-9A-Za-z]+){1,4}$", max_length=64)]
    driver: Text
    via: Words
    memory: Bytes = 0
    free_memory: Bytes = 0
    dla_cores: Annotated[int, Meta(ge=0, le=64)] = 0


class RefusedNode(Message, frozen=True):
    """A node that the parser there refuses."""

    node: Text = ""
    op: Text = ""
    message: Text = ""


class EngineBuilt(Message, frozen=True):
    """Of the action ``build``: an engine, or what was refused. Files lie in the job's folder under fixed names."""

    version: Text
    via: Text
    refused: Annotated[tuple[RefusedNode, ...], Meta(max_length=1 << 16)] = ()
    failure: Text = ""
    size: Bytes = 0
    sha256: Annotated[str, Meta(pattern="^([0-9a-f]{64})?$")] = ""
    layers: Count = 0
    seconds: Time = 0.0
    files: Words = ()
    argv: Words = ()
    on_gpu: Words = ()


class ProgramResult(Message, frozen=True):
    """Of the action ``program``: what it printed, and the text of its file."""

    text: Output
    file: Output = ""


JOB_EVENTS: Mapping[str, type[Message]] = {
    "phase": Phase,
    "versions": Versions,
    "ready": Ready,
    "progress": Progress,
    "error": Failure,
}
"""What a job sends before its ``result``."""


# --- events of a plan ------------------------------------------------------------------------------------


class Busy(Message, frozen=True):
    """Another run holds the device."""

    holder: Owner = Owner()


class RefusalKind(enum.StrEnum):
    """Why a governor cannot be set."""

    UNKNOWN = "unknown"
    UNSUPPORTED = "unsupported"
    DENIED = "denied"


class Refused(Message, frozen=True):
    """The governor cannot be set."""

    kind: RefusalKind
    problem: Text


class Started(Message, frozen=True):
    """A task began; ``replayed``: its outcome was in the journal."""

    id: Text
    replayed: bool = False


class Line(Message, frozen=True):
    """A task's own event."""

    id: Text
    line: str


class Ended(Message, frozen=True):
    """A task's process is gone."""

    id: Text
    returncode: Annotated[int, Meta(ge=-255, le=255)]
    stderr: Text = ""
    timed_out: bool = False


class StateEvent(Message, frozen=True):
    """A look at the device while a plan goes on."""

    state: DeviceState


class Beat(Message, frozen=True):
    """A sign of life."""


class Bye(Message, frozen=True):
    """The last event of a plan."""

    why: Literal["done", "cancelled", "host-gone", "heartbeat-lost"]


PLAN_EVENTS: Mapping[str, type[Message]] = {
    "busy": Busy,
    "refused": Refused,
    "started": Started,
    "line": Line,
    "ended": Ended,
    "state": StateEvent,
    "beat": Beat,
    "bye": Bye,
}


# --- the installer ----------------------------------------------------------------------------------------


class Description(Message, frozen=True):
    """A device's Python, and what ``edgekit devices prepare`` has put beside it (``agent/installer.py``)."""

    version: tuple[Part, Part, Part]
    implementation: Text
    machine: Annotated[str, Meta(pattern="^[A-Za-z0-9_]{1,40}$")]
    libc: Text
    libc_version: tuple[Part, Part]
    root: Text
    packages: Annotated[dict[Text, Text], _FEW] = {}
    prepared: Annotated[dict[Text, Annotated[tuple[WheelFile, ...], _FEW]], _FEW] = {}


class Done(Message, frozen=True):
    """The installer did what it was asked for."""

    folder: Text
