"""Talk to a language model's artifact in this process: the same runner that verifies it, kept open."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, cast

from edgekit.artifact import manifest as manifests
from edgekit.artifact.language_again import is_language
from edgekit.artifact.manifest import Artifact
from edgekit.core import plugins
from edgekit.core.foreign import translated
from edgekit.errors import BackendError, MissingExtraError, UsageError


class Voice(Protocol):
    """A runner's session that can speak."""

    def speak(self, messages: Sequence[Mapping[str, str]], new: int) -> Iterator[str]:
        """The answer to a conversation, piece by piece, of at most ``new`` tokens."""
        ...


def opened(artifact: Artifact, *, threads: int = 0) -> Voice:
    """The artifact's model in this process. Raises :class:`UsageError` for what is no language model, and what loading
    it raises."""
    if not is_language(artifact):
        raise UsageError(
            f"{artifact.directory} is {artifact.target}: a plain forward, without tokenizer and cache",
            hint="edgekit build hf:DIR --target ort-genai-int4 makes what can be talked to",
        )
    manifests.check_files(artifact)
    backend = artifact.manifest.target.backend
    plugins.refuse_received(backend, artifact.model)
    path = plugins.runner(backend)
    spec = importlib.util.spec_from_file_location(f"edgekit_runner_{backend}", path)
    assert spec is not None
    assert spec.loader is not None
    runner: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(runner)
    with translated(f"{artifact.directory} cannot be opened", hint="edgekit verify it", kind=BackendError):
        try:
            runner.versions()
            return cast(
                "Voice", runner.load(str(artifact.model), {**artifact.manifest.runtime, "threads": threads})
            )
        except ModuleNotFoundError as error:
            requirement = plugins.info(backend).requirement
            raise MissingExtraError(f"the runtime of {artifact.target}", requirement=requirement) from error


def spoken(voice: Voice, messages: Sequence[Mapping[str, str]], new: int) -> Iterator[str]:
    """The answer piece by piece; what the runtime raises as :class:`BackendError`."""
    # What is typed may hold bytes that are no text, which no tokenizer takes.
    sayable = [{k: v.encode("utf-8", "replace").decode() for k, v in m.items()} for m in messages]
    with translated(
        "the runtime refuses the conversation",
        hint="begin another where it has become longer than the model's window",
        kind=BackendError,
    ):
        yield from voice.speak(sayable, new)
