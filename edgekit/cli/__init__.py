"""The command line: one click command a file, each imported only when it is called.

``edgekit --help`` reads the table below and imports no command; a command imports torch, onnx and the
runtimes inside its body. Errors of :mod:`edgekit.errors` end the process with their exit code, here and
nowhere else.
"""

from __future__ import annotations

import contextlib
import importlib
import signal
import sys
import traceback
from collections.abc import Mapping

import click

from edgekit.cli import _ending, _streams
from edgekit.core import contained
from edgekit.core.versions import EDGEKIT
from edgekit.errors import DefectError, EdgekitError, Stopped, UnknownNameError, UsageError

COMMANDS = {
    "init": "Write a first edgekit.toml: every option, explained, with its default.",
    "build": "Build, verify and gate artifacts for one or more targets.",
    "compress": "Prune, share weights, distil … in PyTorch: by a recipe, or searched under a budget.",
    "sweep": "Build a grid of sources, recipes, targets and devices, each cell on its own.",
    "verify": "Run an artifact again on its runtime and check its gates.",
    "bench": "Measure latency and memory of artifacts, side by side.",
    "chat": "Talk to a language model's artifact in the terminal.",
    "profile": "Show where an artifact's time goes, operator by operator.",
    "compare": "Hold a build against an older one: what got better, worse, or cannot be told.",
    "history": "Show what was built, verified and measured, and when.",
    "report": "Write one HTML page about artifacts: verdicts, figures, how to repeat them.",
    "package": "Make what an app developer takes: a self-testing bundle, a library, a web package.",
    "pack": "Code an artifact losslessly into one .ekz file.",
    "unpack": "Decode a .ekz file, or one tensor of it.",
    "diff": "Find the layer where two models, or an artifact and its source, begin to differ.",
    "inspect": "Show what is in an artifact or a model file.",
    "devices": "List, add and check the devices that artifacts run on.",
    "targets": "List every target: installed, usable here, why not.",
    "steps": "List the steps of a compression recipe, with their options.",
    "cache": "Show what the cache of build steps holds, and remove what is no longer used.",
    "doctor": "Check runtimes, versions and tools, and say what to do.",
    "demo": "Build, verify, benchmark and report the digits example.",
}

_TOGETHER = {"unpack": "pack", "sweep-cell": "sweep", "train-part": "compress", "search-part": "compress"}
"""Commands that live in another's file."""

_HIDDEN = ("sweep-cell", "train-part", "search-part")
"""Commands that edgekit calls itself."""


class LazyGroup(click.Group):
    """A group whose commands live in ``edgekit.cli.<name>`` and are imported on use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command."""
        if cmd_name not in COMMANDS and cmd_name not in _HIDDEN:
            return None
        module = importlib.import_module(f"edgekit.cli.{_TOGETHER.get(cmd_name, cmd_name)}")
        command: click.Command = getattr(module, cmd_name.replace("-", "_"))
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, with the nearest names for a typing mistake, and options given twice refused."""
        if args and not args[0].startswith("-") and args[0] not in (*COMMANDS, *_HIDDEN):
            raise UnknownNameError("command", args[0], COMMANDS)
        name, command, rest = super().resolve_command(ctx, args)
        if command is not None:
            from edgekit.cli._options import refuse_repeated  # the list of commands does without

            refuse_repeated(command, rest, ctx)
        return name, command, rest

    def invoke(self, ctx: click.Context) -> object:
        """As click does; no command calls ``sys.exit``, so that whoever does is code that it runs."""
        from edgekit.core.files import gone, working_folder_is_gone  # the help pages do without

        if working_folder_is_gone():
            raise gone()
        try:
            return super().invoke(ctx)
        except SystemExit as end:
            raise _ending.ended_by_code(end) from end

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The table, without importing anything."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(EDGEKIT, prog_name="edgekit")
def cli() -> None:
    """Take a PyTorch model to a measured, verified, shippable artifact on an edge runtime."""


def main() -> None:
    """Entry point of the ``edgekit`` command."""
    as_json = "--json" in sys.argv
    _streams.prepare()
    _ending.prepare()
    try:
        with contained.program():
            code = cli.main(standalone_mode=False)
    except click.exceptions.Exit as e:
        code = e.exit_code
    except click.ClickException as e:
        code = _misused(e, as_json=as_json)
    except (KeyboardInterrupt, click.Abort) as e:
        # click makes an Abort of every EOFError, and of every interrupt: its cause tells.
        cause = e.__cause__ or e.__context__ if isinstance(e, click.Abort) else e
        code = (
            _report(cause, as_json=as_json)
            if isinstance(cause, EOFError)
            else _interrupted(cause, as_json=as_json)
        )
    except (BrokenPipeError, SystemExit):  # click makes the one of the other; no other SystemExit gets here
        code = 128 + signal.SIGPIPE
    except Exception as e:
        from edgekit.core.files import refused_by_system

        code = (
            _interrupted(stop, as_json=as_json)
            if (stop := _behind(e))
            else _report(refused_by_system(e) or e, as_json=as_json)
        )
    contained.lift()
    _ending.settle()
    _streams.settle()
    sys.exit(code if isinstance(code, int) else 0)


def _behind(error: Exception) -> BaseException | None:
    """The interrupt that an error came upon while everything ended: a terminal that is gone cannot be written to."""
    behind: BaseException | None = error if isinstance(error, OSError) else None
    while behind is not None and not isinstance(behind, KeyboardInterrupt):
        behind = behind.__cause__ or behind.__context__
    return behind


def _misused(error: click.ClickException, *, as_json: bool) -> int:
    """What click says of a command line that it cannot read, with the exit code of every other usage error."""
    with contextlib.suppress(OSError):
        error.show()
    context = error.ctx if isinstance(error, click.UsageError) else None
    path = "edgekit" if context is None else context.command_path
    usage = UsageError(error.format_message(), hint=f"{path} --help shows how it is called")
    if as_json:
        _print_error(usage.to_json())
    return UsageError.exit_code


def _print_error(error: Mapping[str, object]) -> None:
    """The document of a command that ended with an error, where it has printed none: there is one for every end."""
    from edgekit.cli._output import has_printed, print_json

    with contextlib.suppress(OSError, _streams.OutputError):
        if not has_printed():
            print_json({"error": error})


def _interrupted(cause: BaseException | None, *, as_json: bool) -> int:
    _ending.settle()
    number = cause.signal if isinstance(cause, Stopped) else signal.SIGINT
    why = f"ended by {signal.Signals(number).name}" if isinstance(cause, Stopped) else "interrupted"
    left = "nothing half-written was left; the next run continues from the cache"
    with contextlib.suppress(OSError):  # the terminal may be gone
        click.echo(f"{why}: {left}", err=True)
    if as_json:
        name = signal.Signals(number).name
        _print_error({"type": name, "message": why, "hint": left, "exit_code": 128 + number})
    return 128 + number


def _report(error: Exception, *, as_json: bool) -> int:
    if isinstance(error, MemoryError):
        error = contained.out_of_memory()
    if not isinstance(error, EdgekitError):
        with contextlib.suppress(OSError):  # stderr may take nothing, either
            traceback.print_exception(error)
            click.echo("edgekit: this is a defect; please report it with the traceback above", err=True)
        if as_json:
            _print_error(DefectError.of(error, "edgekit").to_json())
        return DefectError.exit_code
    from edgekit.cli._output import show_error

    with contextlib.suppress(OSError):
        try:
            show_error(error, as_json=as_json and not isinstance(error, _streams.OutputError))
        except _streams.OutputError:
            show_error(error)
    return error.exit_code
