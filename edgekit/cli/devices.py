"""``edgekit devices``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgekit.artifact.summary import size
from edgekit.cli._options import json_flag
from edgekit.cli._output import labelled, print_json, say, table
from edgekit.devices import catalogue
from edgekit.devices.checkup import Checkup, check
from edgekit.devices.prepare import Plan, Preparation, scratch
from edgekit.devices.transports import hostkeys
from edgekit.devices.transports.connect import connect, ssh_options
from edgekit.errors import UnknownNameError, UnreachableError, UsageError
from edgekit.types import Device


@click.group(invoke_without_command=True)
@click.pass_context
def devices(ctx: click.Context) -> None:
    """List, add, check and prepare the devices that artifacts are verified and measured on.

    A device is a machine that you reach with ssh, by the same name (your ~/.ssh/config, agent, ProxyJump and
    known_hosts count), or a phone or board that adb sees. What is copied there is removed again; only prepare
    installs, and asks first.
    """
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_)


@devices.command("list")
@click.option("--kinds", is_flag=True, help="The kinds of device that edgekit knows instead.")
@json_flag
def list_(kinds: bool = False, as_json: bool = False) -> None:
    """List your devices."""
    if kinds:
        known = tuple(catalogue.kinds().values())
        if as_json:
            print_json({"kinds": known})
            return
        rows = [(k.name, k.title, k.processor, ", ".join(k.isa), k.why) for k in known]
        table("", ("kind", "device", "processor", "instructions", "why"), rows)
        return
    found, places, wrong = tuple(catalogue.devices().values()), catalogue.places(), catalogue.unusable()
    if as_json:
        document: dict[str, object] = {"devices": found, "files": {n: str(p) for n, p in places.items()}}
        bad = [{"device": row.name, "file": str(row.path), "error": row.error.to_json()} for row in wrong]
        print_json(document | {"unusable": bad})
        return
    cells = [
        (d.name, str(d.options.get("kind", "")), d.transport, d.address, d.arch, str(places.get(d.name, "")))
        for d in found
    ]
    cells += [(row.name, "unusable", "-", "-", "-", str(row.path)) for row in wrong]
    table("", ("device", "kind", "transport", "address", "arch", "from"), cells)
    for row in wrong:
        say(f"unusable: {row.error.message}; {row.error.hint}", err=True)


@devices.command()
@click.argument("name")
@click.option("--ssh", "host", metavar="USER@HOST", help="What you would type after ssh.")
@click.option(
    "--adb",
    "serial",
    metavar="SERIAL",
    help="Its serial number in adb devices, or HOST:PORT; auto: the only one.",
)
@click.option("--kind", help="See edgekit devices list --kinds (default: linux-ssh; over adb by its maker).")
@click.option(
    "--port", type=click.IntRange(1, 65535), help="Where its sshd listens, if not in ~/.ssh/config."
)
@click.option(
    "--python", default="", metavar="PATH", help="The interpreter with the runtimes, if not python3."
)
@click.option("--config", default="", metavar="FILE", help="An ssh configuration to use in place of yours.")
@click.option(
    "--folder", default="", metavar="DIR", help="What adb's user can write, if not /data/local/tmp."
)
@click.option(
    "--benchmark-model", default="", metavar="PATH", help="LiteRT's program to time with, for its ABI."
)
@click.option("--onnxruntime-perf-test", default="", metavar="PATH", help="ONNX Runtime's.")
@click.option(
    "--trtexec", default="", metavar="PATH", help="TensorRT's. device:PATH is one that is there already."
)
def add(name: str, host: str | None, serial: str | None, kind: str | None, **fields: Any) -> None:
    """Connect to a device, look at it, and keep it as NAME."""
    catalogue.check_name(name)
    if (host is None) == (serial is None):
        raise UsageError("a device is reached in one way", hint="give --ssh USER@HOST or --adb SERIAL")
    if kind is not None and kind not in catalogue.kinds():
        raise UnknownNameError("kind of device", kind, catalogue.kinds())
    transport, address = ("ssh", host) if host is not None else ("adb", "" if serial == "auto" else serial)
    assert address is not None
    options = {key: value for key, value in fields.items() if value}
    seen = check(Device(name=name, transport=transport, address=address, options=options))
    if seen.error:
        raise UnreachableError(seen.error, hint=seen.hint)
    row = catalogue.Row(
        name=name,
        address=address,
        kind=kind or catalogue.kind_of(transport, seen.facts),
        arch=seen.facts.arch,
        os=seen.facts.os.partition(" ")[0].lower(),
        emulated=seen.facts.emulated,
        **fields,
    )
    path = catalogue.write(row)
    _show(seen)
    say(f"kept in {path}", err=True)


@devices.command("check")
@click.argument("names", nargs=-1)
@json_flag
def check_(names: tuple[str, ...], as_json: bool) -> None:
    """Say what each device has and lacks (default: all of them)."""
    chosen = [catalogue.device(n) for n in names] or list(catalogue.devices().values())
    found = [check(device) for device in chosen]
    if not names:
        wrong = catalogue.unusable()
        found += [Checkup(device=r.name, error=r.error.message, hint=r.error.hint) for r in wrong]
    if as_json:
        print_json({"devices": found})
    else:
        for seen in found:
            _show(seen)
    if any(seen.error for seen in found):
        raise click.exceptions.Exit(7)


@devices.command()
@click.argument("name")
@click.option("--backend", "-b", "backends", multiple=True, help="Which runtimes (default: its kind's).")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--remove", is_flag=True, help="Take away what was installed before.")
@click.option("--dry-run", is_flag=True, help="Show what would be installed.")
def prepare(name: str, backends: tuple[str, ...], yes: bool, remove: bool, dry_run: bool) -> None:
    """Install runtimes on a device, into a folder of edgekit's own in the user's home.

    The wheels that fit its Python, C library and processor are found here and sent; the device needs neither
    pip nor a network, and its own packages stay as they are.
    """

    device = catalogue.device(name)
    with connect(device) as transport, scratch() as folder:
        work = Preparation(device=device, transport=transport, folder=Path(folder))
        if remove:
            for backend in work.remove(backends):
                say(f"{backend} was taken away")
            return
        plan = work.plan(backends)
        _show_plan(plan)
        if not plan.resolved or dry_run:
            return
        if not yes:
            _ask(f"Install on {name}?")
        for seen in work.install(plan):
            say(f"{seen.backend:13} {_versions(seen.versions)}")


def _show_plan(plan: Plan) -> None:
    for backend in plan.unchanged:
        say(f"{backend} is there already")
    rows = [
        (r.backend, w.name, w.version, size(w.path.stat().st_size), w.sha256[:16])
        for r in plan.resolved
        for w in r.wheels
    ]
    if rows:
        whole = sum(w.unpacked for r in plan.resolved for w in r.wheels)
        title = f"{plan.device}: {size(whole)} into {plan.root}/{plan.python.tag}"
        table(title, ("for", "wheel", "version", "size", "sha256"), rows)
    for resolved in plan.resolved:
        for package in resolved.own:
            say(f"{resolved.backend}: no wheel of {package} fits; the device's own is used")


def _ask(question: str) -> None:
    """Ask; where nobody can answer, nothing is done."""
    try:
        agreed = click.confirm(question, err=True)
    except click.Abort as error:
        raise UsageError(
            "nobody answered, so nothing was installed", hint="agree beforehand: --yes"
        ) from error
    if not agreed:
        raise click.Abort


@devices.command()
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask: you have compared the fingerprints.")
def trust(name: str, yes: bool) -> None:
    """Show a device's SSH fingerprints and, if you say so, trust them. NAME may also be USER@HOST."""
    rows = {*catalogue.devices(), *(row.name for row in catalogue.unusable())}
    device = catalogue.device(name) if name in rows else Device(name=name, transport="ssh", address=name)
    endpoint = hostkeys.resolve(ssh_options(device))
    keys = hostkeys.scan(endpoint)
    for key in keys:
        say(key.fingerprint)
    say("Compare with, on the device: ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub", err=True)
    if not yes:
        click.confirm(f"Add them to {endpoint.known_hosts}?", abort=True, err=True)
    hostkeys.trust(endpoint, keys)


def _show(seen: Checkup) -> None:
    if seen.error:
        labelled("error  ", f"{seen.device}  {seen.error}", fg="red")
        say(f"        → {seen.hint}", indent="          ")
        return
    facts = seen.facts
    python = f"Python {facts.python}" if facts.python else "no Python: only timed, by a vendor's tool"
    about = f"{facts.model or facts.processor}, {facts.arch}, {facts.os}, {python}"
    about += ", emulated" if facts.emulated else ""
    labelled("ok     ", f"{seen.device}  {about}", fg="green")
    for runtime in seen.runtimes:
        text = runtime.problem.splitlines()[0] if runtime.problem else _versions(runtime.versions)
        say(f"        {runtime.backend:13} {text}", indent=" " * 22)


def _versions(versions: object) -> str:
    assert isinstance(versions, dict)
    return ", ".join(f"{k} {v}" for k, v in versions.items())
