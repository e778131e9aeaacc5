"""``edgekit package``."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option(
    "--format", "format_", required=True, help="bundle, android-aar, ios-spm, web, tflite-metadata …"
)
@click.option("--name", required=True, help="Package id, such as com.example.digits.")
@click.option("--version", required=True, help="Version of the package, such as 1.0.0.")
@click.option("--out", type=click.Path(path_type=Path), help="New folder (default: NAME-VERSION-FORMAT).")
@click.option("--license", "license_", default="", help="The model's licence as an SPDX expression.")
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
@click.option("--allow-failed", is_flag=True, help="Package an artifact whose gates did not pass.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def package(
    artifact: Path,
    format_: str,
    name: str,
    version: str,
    out: Path | None,
    license_: str,
    license_file: Path | None,
    labels: Path | None,
    sign_key: Path | None,
    compress: str,
    allow_failed: bool,
    as_json: bool,
) -> None:
    """Write ARTIFACT as a package for an app: the model, its preprocessing, and tests that run there."""
    from edgekit.artifact import manifest
    from edgekit.cli._output import print_json
    from edgekit.package import PackageSpec
    from edgekit.package import package as write

    spec = PackageSpec(
        format=format_,
        name=name,
        version=version,
        license=license_,
        license_file=license_file,
        labels=labels,
        sign_key=sign_key,
        allow_failed=allow_failed,
        compress=compress,
    )
    made = write(manifest.read(artifact), spec, out or Path(f"{name}-{version}-{format_}"))
    if as_json:
        print_json({"package": made})
        return
    click.echo(str(made.directory))
    for file in made.files:
        click.echo(f"  {file}", err=True)
