"""``edgekit package``."""

from __future__ import annotations

from pathlib import Path

import click

import edgekit
from edgekit.cli._contained import contain
from edgekit.cli._options import json_flag
from edgekit.cli._output import harmless, print_json, say
from edgekit.core.config import Options


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--format", required=True, help="bundle, android-aar, ios-spm, web, tflite-metadata …")
@click.option("--name", required=True, help="Package id, such as com.example.digits.")
@click.option("--version", required=True, help="Version of the package, such as 1.0.0.")
@click.option("--out", type=click.Path(path_type=Path), help="New folder (default: NAME-VERSION-FORMAT).")
@click.option("--license", default="", help="The model's licence as an SPDX expression.")
@click.option("--license-file", type=click.Path(path_type=Path), help="The text of the model's licence.")
@click.option("--labels", type=click.Path(path_type=Path), help="Class names, one a line.")
@click.option("--sign-key", type=click.Path(path_type=Path), help="Ed25519 private key (PEM) to sign with.")
@click.option(
    "--compress",
    type=click.Choice(("zip", "ekz")),
    default="zip",
    show_default=True,
    help="A bundle's archive: ekz codes its tensors without loss, smaller and slower.",
)
@click.option(
    "--postprocess",
    default="auto",
    show_default=True,
    help="What makes probabilities of the outputs: softmax, sigmoid, none, or a TOML file (boxes); auto: the "
    "artifact's own contract, or what its source answers.",
)
@click.option(
    "--native",
    multiple=True,
    type=click.Path(path_type=Path),
    help="An .aar, .apk or folder whose libraries are looked at (default: Maven's and Gradle's caches).",
)
@click.option(
    "--golden/--no-golden",
    default=True,
    show_default=True,
    help="Whether an app package has its test vectors; --no-golden is for the build that is released.",
)
@click.option(
    "--tokenizer", type=click.Path(path_type=Path), help="transformers-js: folder with config and tokenizer."
)
@click.option("--allow-failed", is_flag=True, help="Package an artifact whose gates did not pass.")
@json_flag
def package(artifact: Path, out: Path | None, as_json: bool, **fields: object) -> None:
    """Write ARTIFACT as a package for an app: the model, its preprocessing, and tests that run there."""
    contain(str(artifact), Options(), artifact)
    spec = edgekit.PackageSpec(**fields)  # type: ignore[arg-type]  # click has read each by its type
    result = edgekit.open(artifact).package(spec, out)
    if as_json:
        print_json({"package": result})
        return
    say(harmless(str(result.directory)))
    for file in result.files:
        say(harmless(f"  {file}"), err=True)
    for note in result.notes:
        say(harmless(f"note: {note}"), err=True)
    for finding in result.native.findings:
        say(
            harmless(f"{'refused by Google Play' if finding.refuses else 'note'}: {finding.message}"),
            err=True,
        )
