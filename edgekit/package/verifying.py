"""Replay a bundle: its preprocessing, its model on the real runtime, its labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgekit.artifact.interface import Vector, differences
from edgekit.artifact.manifest import Status
from edgekit.artifact.run import received
from edgekit.core import plugins
from edgekit.devices.execute import LOCAL, Ports, run_artifact
from edgekit.devices.runnable import Runnable
from edgekit.errors import SourceError, UnknownNameError
from edgekit.package import bundle, postprocess
from edgekit.package.bundle import Bundle
from edgekit.package.descriptor import TOLERANCES, Descriptor, GoldenCase, TensorFile, arithmetic
from edgekit.package.golden import relative_error
from edgekit.preprocess import postprocessing
from edgekit.preprocess.frame import frame
from edgekit.preprocess.postprocessing import Postprocessing
from edgekit.types import Device, Gate, TensorSpec, Verdict, sha256_file

if TYPE_CHECKING:
    from edgekit.types import Array


@dataclass(frozen=True, kw_only=True)
class CaseReport:
    """One golden case. ``preprocessed`` is ``None`` where the case has no image."""

    name: str
    verdict: Verdict
    error: float
    limit: float
    preprocessed: bool | None = None
    message: str = ""


@dataclass(frozen=True, kw_only=True)
class BundleReport:
    """What came of replaying a bundle. ``refused_before``: gates that did not pass when its artifact was built.
    ``notes`` say what was not checked."""

    descriptor: Descriptor
    device: str
    cases: tuple[CaseReport, ...]
    runtime_versions: Mapping[str, str]
    refused_before: tuple[Gate, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every case passed, and every gate of the build did."""
        return not self.refused_before and all(c.verdict is Verdict.PASS for c in self.cases)


def verify_bundle(
    path: Path, *, device: Device = LOCAL, accelerator: str = "cpu", public_key: Path | None = None
) -> BundleReport:
    """Check a bundle's files, then run its golden vectors through contract and runtime.

    Raises :class:`~edgekit.errors.SourceError` for a bundle that is damaged or not to be trusted, and the
    errors of :func:`edgekit.devices.execute.run_artifact`. A case that fails is in the report.
    """
    with bundle.opened(path, public_key=public_key) as read:
        described = read.descriptor
        _refuse_other_cases(described)
        limit, weaker = _limit(described, accelerator)
        labels = _labels(read.directory, described)
        fed = [_load_all(read.directory, case.inputs) for case in described.golden.cases]
        main = read.directory / described.files[0]
        plugins.refuse_received(described.backend, main)
        runnable = Runnable(
            backend=described.backend,
            main=main,
            companions=tuple(read.directory / name for name in described.files[1:]),
            options=described.runtime.options,
            outputs=tuple(o.name for o in described.outputs),
        )
        with received(str(path)):
            answers = run_artifact(runnable, fed, device=device)
        with answers as result:
            expected = _load_all(read.directory, described.golden.cases[0].outputs)
            _refuse_another_interface(described, result.ports, Vector(inputs=fed[0], outputs=expected))
            replay = _Replay(directory=read.directory, descriptor=described, labels=labels, limit=limit)
            cases = tuple(
                replay.judge(case, inputs, outputs)
                for case, inputs, outputs in zip(described.golden.cases, fed, result.outputs, strict=True)
            )
            versions = dict(result.versions)
    notes = (*weaker, *_signature_notes(read))
    return BundleReport(
        descriptor=described,
        device=device.name,
        cases=cases,
        runtime_versions=versions,
        refused_before=_refused_before(described),
        notes=notes,
    )


def _signature_notes(read: Bundle) -> tuple[str, ...]:
    if read.signed:
        return ()
    if read.has_signature:
        return ("its signature was not checked: no public key was given",)
    return ("it is not signed: anybody may have written it",)


def _refused_before(described: Descriptor) -> tuple[Gate, ...]:
    """The gates that did not pass when it was built; a status that none of them explains counts as one."""
    found = tuple(g for g in described.gates if g.verdict in (Verdict.FAIL, Verdict.NOT_RUN))
    if found or described.status in (Status.PASSED, Status.UNPROVEN):
        return found
    message = f"the bundle says that its model is {described.status!r}, and not by which gate"
    return (Gate(name="status", verdict=Verdict.FAIL, message=message),)


def _refuse_another_interface(described: Descriptor, ports: Ports, vector: Vector) -> None:
    """Apps are written by the descriptor. Its vectors are in the file's layout, so no channels have moved."""
    for problem in differences(described.inputs, described.outputs, (), ports, vector):
        raise SourceError(
            f"the bundle says that {problem}", hint="do not trust this bundle: ask the sender for a new one"
        )


def _refuse_other_cases(described: Descriptor) -> None:
    """What an app is told to feed has to be what was fed, and an output that no case speaks of could be anything."""
    for case in described.golden.cases:
        for kind, tensors, specs in (
            ("inputs", case.inputs, described.inputs),
            ("outputs", case.outputs, described.outputs),
        ):
            wanted = {s.name for s in specs}
            if {t.name for t in tensors} != wanted:
                raise SourceError(
                    f"the golden case {case.name} does not have the {kind} of the model ({', '.join(sorted(wanted))})",
                    hint="do not trust this bundle: ask the sender for a new one",
                )
    if not described.golden.cases:
        raise SourceError(
            "the package has no golden vectors, so that nothing proves its model",
            hint="verify the package that has them: this one was written with --no-golden, or by somebody else",
        )


@dataclass(frozen=True, kw_only=True)
class _Replay:
    """What every case is judged by."""

    directory: Path
    descriptor: Descriptor
    labels: tuple[str, ...]
    limit: float

    def judge(self, case: GoldenCase, fed: Mapping[str, Array], outputs: Mapping[str, Array]) -> CaseReport:
        """The verdict on one case."""
        preprocessed = self._preprocess(case, fed)
        expected = _load_all(self.directory, case.outputs)
        error = max((relative_error(outputs[name], e) for name, e in expected.items()), default=0.0)
        message = ""
        if preprocessed is False:
            message = "the contract does not turn the image into the stored tensor"
        # Written so that a NaN fails.
        elif not error <= self.limit:
            message = f"an output is off by {error:.3g} of its largest value, {self.limit:g} is allowed"
        elif case.label and self._label(outputs) != case.label:
            message = f"the class is {self._label(outputs)!r}, expected {case.label!r}"
        else:
            message = self._postprocess(case, expected)
        return CaseReport(
            name=case.name,
            verdict=Verdict.FAIL if message else Verdict.PASS,
            error=error,
            limit=self.limit,
            preprocessed=preprocessed,
            message=message,
        )

    def _preprocess(self, case: GoldenCase, fed: Mapping[str, Array]) -> bool | None:

        contract, spec = self.descriptor.preprocessing, self.descriptor.image_input
        if case.image is None or contract is None or spec is None:
            return None
        data = np.frombuffer((self.directory / case.image.file).read_bytes(), np.uint8)
        # A file of another size was checksummed all the same: the descriptor lies about it.
        if data.size != case.image.height * case.image.width * 3:
            return False
        image = data.reshape(case.image.height, case.image.width, 3)
        return bool(np.array_equal(contract.apply(image, spec), fed[spec.name]))

    def _postprocess(self, case: GoldenCase, stored: Mapping[str, Array]) -> str:
        """What is wrong with the stored result of the stored outputs: the arithmetic alone, not the runtime's."""
        contract, file = self.descriptor.postprocessing, case.result
        if contract is None or file is None:
            return "" if contract is None and file is None else "the contract's result is not stored"
        want, got = _load(self.directory, file), postprocess.apply(contract, self.descriptor.outputs, stored)
        if not _close(got, want):
            return "the post-processing contract does not give the stored result"
        return self._place(contract, case, stored)

    def _place(self, contract: Postprocessing, case: GoldenCase, stored: Mapping[str, Array]) -> str:
        """What is wrong with the boxes in pixels of the case's image."""
        before, image = self.descriptor.preprocessing, case.image
        if not contract.is_boxes or before is None or image is None:
            return ""
        if case.placed is None:
            return "the boxes in the image's pixels are not stored"
        got = postprocess.placed(
            contract, self.descriptor.outputs, stored, frame(before, image.height, image.width)
        )
        same = _close(got, _load(self.directory, case.placed), max(image.height, image.width))
        return "" if same else "the boxes are not where they are stored to be in the image"

    def _label(self, outputs: Mapping[str, Array]) -> str:
        record = self.descriptor.labels
        assert record is not None
        scores = outputs[record.output]
        index = int(scores.argmax()) if scores.size else -1
        return self.labels[index] if 0 <= index < len(self.labels) else f"number {index}, which has no name"


def _close(got: Array, want: Array, unit: float = 1.0) -> bool:
    return want.shape == got.shape and np.allclose(
        got, want, rtol=0, atol=postprocess.CLOSE * unit, equal_nan=True
    )


def _limit(described: Descriptor, accelerator: str) -> tuple[float, tuple[str, ...]]:
    """edgekit's own limit for the bundle's arithmetic, or the bundle's where that is narrower; and a note."""
    claimed, ours = described.golden.tolerance, TOLERANCES[arithmetic(described.precision)]
    if accelerator not in claimed or accelerator not in ours:
        raise UnknownNameError("accelerator", accelerator, claimed)
    if claimed[accelerator] <= ours[accelerator]:
        return claimed[accelerator], ()
    note = f"the bundle allows {claimed[accelerator]:g} of an output's largest value, edgekit {ours[accelerator]:g}"
    return ours[accelerator], (f"{note}: edgekit's limit counts",)


def _labels(directory: Path, described: Descriptor) -> tuple[str, ...]:
    record = described.labels
    if record is None:
        return ()
    path = directory / record.file
    labels = tuple(path.read_text(encoding="utf-8", errors="replace").removesuffix("\n").split("\n"))
    output = next(o for o in described.outputs if o.name == record.output)
    if (
        sha256_file(path) != record.sha256
        or len(labels) != record.count
        or _width(described, output) not in (None, record.count)
    ):
        raise SourceError(
            f"{record.file} is not the label file of this model", hint="ask the sender for a new bundle"
        )
    return labels


def _width(described: Descriptor, output: TensorSpec) -> int | str | None:
    """How many classes the labelled output has, ``None`` where that is dynamic."""
    p = described.postprocessing
    if p is not None and p.is_boxes and p.output == output.name:
        return postprocessing.classes(p, described.outputs)
    return output.shape[-1] if output.shape else 1


def _load_all(directory: Path, files: tuple[TensorFile, ...]) -> dict[str, Array]:
    return {t.name: _load(directory, t) for t in files}


def _load(directory: Path, tensor: TensorFile) -> Array:

    try:
        flat = np.frombuffer((directory / tensor.file).read_bytes(), np.dtype(tensor.dtype).newbyteorder("<"))
        array: Array = flat.reshape(tensor.shape).astype(tensor.dtype)
    except (ValueError, TypeError) as e:
        raise SourceError(
            f"{tensor.file} does not hold {tensor.dtype}{list(tensor.shape)}", hint="write the package again"
        ) from e
    return array
