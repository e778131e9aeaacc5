"""From what the user names to the chain of forms between: source → ONNX → optimized → quantized → runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.artifact import golden, language, manifest
from edgekit.artifact.inspect import inspect_file
from edgekit.artifact.manifest import Artifact
from edgekit.core import plugins
from edgekit.diff.forms import Form, Forms
from edgekit.diff.onnx_form import OnnxForm
from edgekit.diff.order import is_artifact, reference_first
from edgekit.diff.pixel_form import PixelForm
from edgekit.diff.tflite_form import TfliteForm
from edgekit.diff.torch_form import TorchForm
from edgekit.errors import DataError, EdgekitError, UsageError
from edgekit.graph.records import read_model
from edgekit.load import parse, trust
from edgekit.load.data import DataSpec, Example, fits, random_samples, unit_example, user_samples
from edgekit.load.shapes import SampleForm, Shapes
from edgekit.load.source import Source
from edgekit.pipeline import stages
from edgekit.pipeline.pixels import recorded
from edgekit.pipeline.stages import BuildContext, Exported
from edgekit.types import OnnxModel, Sample, SourceSpec, TensorSpec, TorchModel

if TYPE_CHECKING:
    from edgekit.types import Array

SAMPLES = 8
"""How many inputs are compared: every layer of every form is kept in memory for one of them at a time."""

_RANDOM = 4


@dataclass(frozen=True, kw_only=True)
class Chain:
    """The forms to walk, the inputs to walk them with, the artifact at the end, and the source at the beginning, if
    they are such."""

    forms: tuple[Form, ...]
    samples: tuple[Mapping[str, Array], ...]
    notes: tuple[str, ...]
    artifact: Artifact | None = None
    source: SourceSpec | None = None
    tampered: bool = False


def resolve(a: str, b: str, data: DataSpec | None, context: BuildContext) -> Chain:
    """The chain from ``a`` to ``b``, or from ``b`` to ``a`` where ``b`` is the finer of the two; with ``b`` empty, from
    an artifact's source to it.

    Raises :class:`UsageError` for a pair that cannot be compared, :class:`DataError` when no sample fits,
    :class:`~edgekit.errors.UntrustedSourceError` when opening an artifact's own source would execute code that is not
    known here, and what loading and exporting the source raise.
    """
    if not b:
        if not is_artifact(a):
            raise UsageError(
                f"there is nothing to compare {a} with",
                hint="edgekit diff SOURCE ARTIFACT; an artifact alone is compared with its source",
            )
        a, b = named_source(manifest.read(Path(a)), context).text, a
    notes: list[str] = []
    named, (a, b) = a, reference_first(a, b)
    if a != named:
        notes.append(f"{a} is the reference, and {b} is compared with it: it is the finer of the two")
    artifact = manifest.read(Path(b)) if is_artifact(b) else None
    if artifact is not None:
        language.refuse(artifact.manifest.target, "a comparison by layers")
    second = _artifact_forms(artifact, context, notes) if artifact else [_file(b, context)]
    if not second:
        raise UsageError(
            f"nothing inside {b} can be read layer by layer: " + "; ".join(notes),
            hint="compare the same model's artifact for another target, for example ort-int8",
        )
    if is_artifact(a) or a.endswith(".tflite"):
        if is_artifact(a):
            _refuse_strangers(a, [i.name for i in manifest.read(Path(a)).manifest.inputs], artifact)
        source, first, exported = None, [_end(a, context, notes)], None
    else:
        source = parse(a)
        shapes = _shapes(artifact, context)
        opened = _opened(source, data, context, shapes)
        exported = stages.export(context, opened)
        _refuse_strangers(a, [i.name for i in exported.model.inputs], artifact)
        built = _built_shapes(artifact)
        if built and built != {name: row.shape for name, row in exported.example_inputs().items()}:
            opened = _opened(source, data, context, replace(shapes, sizes=built, sequence_length=0))
            exported = stages.export(context, opened)
        if artifact is not None and exported.model.sha256 not in _outputs(artifact, "export"):
            notes.append(f"{a} is not what {artifact.directory} was built from: its export is another")
        first = _source_forms(opened, exported, second[0], artifact is not None, context)
    tampered = _tampered(artifact, notes)
    return Chain(
        forms=(*first, *second),
        samples=_samples(data, exported, artifact, a, context),
        notes=tuple(notes),
        artifact=artifact,
        source=source,
        tampered=tampered,
    )


def _refuse_strangers(a: str, names: Sequence[str], artifact: Artifact | None) -> None:
    """Raise :class:`UsageError` for two models none of whose inputs is the other's."""
    theirs = [] if artifact is None else [i.name for i in artifact.manifest.inputs]
    if artifact is not None and names and theirs and not set(names) & set(theirs):
        raise UsageError(
            f"{a} and {artifact.directory} are two models: one takes {', '.join(names)}, the other {', '.join(theirs)}",
            hint="compare a model with what was built from it, or two artifacts of one source",
        )


def named_source(artifact: Artifact, context: BuildContext) -> SourceSpec:
    """The source that an artifact's manifest names, where it may be opened; see :func:`edgekit.load.trust.named`."""
    return trust.named(
        artifact.manifest.source, context.store, trust=context.options.trust, owner=str(artifact.directory)
    )


def _tampered(artifact: Artifact | None, notes: list[str]) -> bool:
    """Whether the files are no longer those that were built: worth knowing before any layer is blamed."""
    if artifact is None:
        return False
    try:
        manifest.check_files(artifact)
    except EdgekitError as error:
        notes.append(error.message)
        return True
    return False


# --- the first model -------------------------------------------------------------------------------------


def _source_forms(
    source: Source, exported: Exported, after: Form, is_artifact: bool, context: BuildContext
) -> list[Form]:
    """The source and its graphs, as far as the form ``after`` was made from them."""
    model = source.load()
    forms: list[Form] = []
    if isinstance(model, TorchModel):
        forms.append(TorchForm(model, tuple(o.name for o in exported.model.outputs)))
    plain = OnnxForm("exported ONNX" if forms else "ONNX", exported.model.path)
    optimized = OnnxForm(
        "optimized ONNX",
        stages.optimize(context, exported.model, exported.example_inputs())[0].path,
    )
    used = is_artifact or after.weight_bits < 16 or _shared(optimized, after) > _shared(plain, after)
    return [*forms, plain, *([optimized] if used else [])]


def _outputs(artifact: Artifact, step: str) -> set[str]:
    return {s.output_sha256 for s in artifact.manifest.steps if s.name == step}


def _built_shapes(artifact: Artifact | None) -> dict[str, tuple[int, ...]]:
    """The shapes of the source's inputs that an artifact with fixed shapes was built for (``--shape``), as its golden
    inputs have them; empty for any other."""
    if artifact is None or not artifact.manifest.target.fixed_shapes or artifact.manifest.golden is None:
        return {}
    rows = golden.read(artifact.directory / artifact.manifest.golden.file)[0]
    pixels = recorded(artifact.manifest)
    first = rows[0] if pixels is None else pixels.restored(rows[0])
    return {name: tuple(array.shape) for name, array in first.items()}


def _shapes(artifact: Artifact | None, context: BuildContext) -> Shapes:
    """Those of the options; inputs that an artifact's source was bound to are bound again."""
    options = context.options
    return Shapes.of(options) if artifact is None else Shapes.again(options, artifact.manifest.source)


def _opened(
    spec: SourceSpec, data: DataSpec | None, context: BuildContext, shapes: Shapes | None = None
) -> Source:
    options = context.options
    return Source(
        spec,
        context.store,
        trust=options.trust,
        network=options.network,
        example=Example(data),
        shapes=shapes or Shapes.of(options),
    )


def _shared(a: Form, b: Form) -> int:
    """How many of ``b``'s layers go by the name of a tensor of ``a``."""
    ours = {layer.tensor for layer in a.layers}
    return sum(any(name in ours for name in layer.names) for layer in b.layers)


# --- the second ------------------------------------------------------------------------------------------


def _file(text: str, context: BuildContext) -> Form:
    path = Path(text)
    if path.suffix == ".tflite":
        if not path.is_file():
            raise UsageError(f"there is no file {path}", hint="check the path")
        return TfliteForm(f"LiteRT ({path.name})", path)
    if path.suffix == ".onnx":
        return OnnxForm(path.name, path)
    exported = stages.export(context, _opened(parse(text), None, context))
    return OnnxForm(f"exported ONNX of {text}", exported.model.path)


def _end(text: str, context: BuildContext, notes: list[str]) -> Form:
    if not is_artifact(text):
        return _file(text, context)
    forms = _artifact_forms(manifest.read(Path(text)), context, notes)
    if not forms:
        raise UsageError(f"nothing inside {text} can be read layer by layer", hint="; ".join(notes))
    return forms[-1]


def _artifact_forms(artifact: Artifact, context: BuildContext, notes: list[str]) -> list[Form]:
    """The quantized ONNX that the artifact was lowered from, if there is one, and what the runtime loads."""
    quantized = _quantized(artifact, context, notes)
    forms: list[Form] = [OnnxForm("quantized ONNX", quantized.path)] if quantized is not None else []
    module = plugins.member(artifact.manifest.target.backend, "form", Forms)
    form: Form | None = None if module is None else module.form(artifact)
    if form is None:
        notes.append(
            f"tensors inside {artifact.model.name} cannot be read: the runtime itself is not compared"
        )
        return forms
    pixels = recorded(artifact.manifest)
    return [*forms, form if pixels is None else PixelForm(form, pixels)]


def _quantized(artifact: Artifact, context: BuildContext, notes: list[str]) -> OnnxModel | None:
    """The output of the artifact's quantize step, from the cache of steps."""
    outputs = _outputs(artifact, "quantize")
    if not outputs:
        return None
    for directory in context.store.results("quantize"):
        record = read_model(directory)
        if record.model.sha256 in outputs:
            return record.model
    notes.append(
        "the quantized ONNX is no longer in the cache: the runtime is compared with the optimized graph, and"
        " layers between which scales were moved may seem wrong (build again to fill the cache)"
    )
    return None


# --- inputs ----------------------------------------------------------------------------------------------


def _samples(
    data: DataSpec | None, exported: Exported | None, artifact: Artifact | None, a: str, context: BuildContext
) -> tuple[Mapping[str, Array], ...]:
    """The user's, else the artifact's golden inputs, else the example and seeded variations of it."""
    inputs = exported.model.inputs if exported is not None else _inputs(a, artifact)
    preprocessing = exported.record.preprocessing if exported is not None else {}
    rows: list[Mapping[str, Array]]
    if data:
        form = None
        if exported is not None:
            form = SampleForm.of(exported.example_inputs(), preprocessing, Shapes.of(context.options))
        samples = user_samples(
            context.store, data, inputs, origin="comparison", preprocessing=preprocessing, form=form
        )
        rows = [sample.inputs for sample in samples.spread(SAMPLES)]
    elif artifact is not None and artifact.manifest.golden is not None:
        pixels = recorded(artifact.manifest)
        stored = golden.read(artifact.directory / artifact.manifest.golden.file)[0]
        rows = [pixels.restored(row) if pixels is not None else row for row in stored]
    else:
        example = exported.example_inputs() if exported is not None else unit_example(inputs)
        rows = [sample.inputs for sample in random_samples(example, _RANDOM)]
    if exported is None or artifact is None or not artifact.manifest.target.fixed_shapes:
        return tuple(rows)
    # A runtime with fixed shapes was compiled for the example's.
    shapes = {name: array.shape for name, array in exported.example_inputs().items()}
    fitting = [row for row in rows if fits(shapes, Sample(inputs=row))]
    if not fitting:
        raise DataError(
            f"{artifact.target} has fixed shapes and no sample has them",
            hint="give samples of the example's shape, or the --shape that it was built with",
        )
    return tuple(fitting)


def _inputs(text: str, artifact: Artifact | None) -> tuple[TensorSpec, ...]:
    if is_artifact(text):
        artifact = manifest.read(Path(text))
    if artifact is not None:
        moved, pixels = artifact.manifest.channels_moved, recorded(artifact.manifest)
        inputs = tuple(_unmoved(spec) if spec.name in moved else spec for spec in artifact.manifest.inputs)
        return inputs if pixels is None else pixels.source_inputs(inputs)
    return inspect_file(Path(text)).inputs


def _unmoved(spec: TensorSpec) -> TensorSpec:
    batch, *middle, channels = spec.shape
    return replace(spec, shape=(batch, channels, *middle))
