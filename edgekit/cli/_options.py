"""The declared options as click's: one decorator adds those of a command and gives it an ``Options``."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

from edgekit.core.config import Options
from edgekit.core.declared import OptionField, declared_options
from edgekit.errors import UsageError

Function = Callable[..., None]

json_flag = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")


class Grouped(click.Command):
    """A command whose help has a section for each group of declared options; its own come first."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Click's list, by group."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx) if isinstance(param, click.Option) else None
            if record is not None:
                group = param.field.declared.group if isinstance(param, DeclaredOption) else "Options"
                sections.setdefault(group, []).append(record)
        for title in sorted(sections, key=lambda title: title != "Options"):
            with formatter.section(title):
                formatter.write_dl(sections[title])


class DeclaredOption(click.Option):
    """A click option that is one of :class:`~edgekit.core.config.Options`."""

    def __init__(self, field: OptionField, command: str) -> None:
        self.field = field
        declared = field.declared
        *spelled, last = field.flags
        flags = [*spelled[:-1], f"{spelled[-1]}/{last}"] if field.is_switch else list(field.flags)
        super().__init__(
            [*flags, field.name],
            help=declared.help_for.get(command, declared.help),
            metavar=None if declared.choices or field.is_switch else declared.metavar,
            type=click.Choice(declared.choices) if declared.choices else None,
            is_flag=field.is_switch,
            multiple=field.is_list or field.is_mapping,
            default=None,
        )

    def given(self, value: Any) -> object:
        """The value that the command line gave."""
        if self.field.is_switch:
            return value
        where = self.opts[0]
        if not self.multiple:
            return self.field.from_text(value, where=where)
        if self.field.is_mapping or self.field.declared.split:
            return self.field.from_text(",".join(value), where=where)
        return tuple(filter(None, value))  # an empty text alone takes back what a file says


def refuse_repeated(command: click.Command, arguments: Sequence[str], parent: click.Context) -> None:
    """Raise :class:`UsageError` for an option of one value that is given twice: click takes the last without a word."""
    context = click.Context(command, info_name=command.name, parent=parent, resilient_parsing=True)
    _, rest, order = command.make_parser(context).parse_args(args=list(arguments))
    for option, times in Counter(p for p in order if isinstance(p, click.Option)).items():
        if times > 1 and not option.multiple and not option.is_flag and not option.count:
            raise UsageError(
                f"{option.opts[0]} is given {times} times", hint="it takes one value: leave the others out"
            )
    if isinstance(command, click.Group) and rest and rest[0] in command.commands:
        refuse_repeated(command.commands[rest[0]], rest[1:], context)


def declared(command: str) -> Callable[[Function], Function]:
    """Decorator: every option that is declared for ``command``; the function is called with ``options=Options``."""
    chosen = [
        DeclaredOption(field, command)
        for field in declared_options(Options).values()
        if command in field.declared.commands
    ]

    def decorate(function: Function) -> Function:
        @functools.wraps(function)
        def run(**parameters: Any) -> None:
            given: Mapping[str, object] = {
                option.field.name: option.given(value)
                for option in chosen
                if (value := parameters.pop(option.field.name)) not in (None, ())
            }
            function(options=Options.load(given), **parameters)

        params = run.__dict__.setdefault("__click_params__", [])
        params.extend(reversed(chosen))
        return run

    return decorate
