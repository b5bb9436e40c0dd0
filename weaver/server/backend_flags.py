"""The flags of `weaver serve` that backends declare: `--tp 2` is `--backend-option tp=2`."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import click

from weaver.backend import BackendOption
from weaver.config import disabled_plugins
from weaver.domain import OptionValue
from weaver.errors import InvalidInput, WeaverError
from weaver.registry import load_registry

_PREFIX: Final = "backend_option_"
_FLAGS: Final = "weaver.backend_flags"


class ServeCommand(click.Command):
    """A command with a flag for each option that an installed backend declares; its own flags come first."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        if _FLAGS not in ctx.meta:  # once for each time it is called
            ctx.meta[_FLAGS] = self._flags()
        return [*super().get_params(ctx), *ctx.meta[_FLAGS]]

    def _flags(self) -> Sequence[click.Option]:
        taken = {name for parameter in self.params for name in parameter.opts}
        return [_flag(name, declared) for name, declared in _declared().items() if name not in taken]


def given_options(texts: Sequence[str], flags: Mapping[str, OptionValue | None]) -> dict[str, OptionValue]:
    """What was given, by the option's name. Raises InvalidInput for one that is not NAME=VALUE, or is given twice."""
    given: dict[str, OptionValue] = {
        name.removeprefix(_PREFIX): value for name, value in flags.items() if value is not None
    }
    for text in texts:
        name, separator, value = text.partition("=")
        if not name or not separator:
            raise InvalidInput(f"--backend-option {text!r} must be NAME=VALUE")
        name = name.replace("-", "_")
        if name in given:
            raise InvalidInput(f"the backend option {name} is given twice")
        given[name] = value
    return given


def _declared() -> Mapping[str, list[tuple[str, BackendOption]]]:
    """By flag, the backends that have it and what each says of it."""
    try:
        backends = load_registry(disabled_plugins()).backends
    except WeaverError as error:
        raise click.ClickException(str(error)) from error
    by_flag: dict[str, list[tuple[str, BackendOption]]] = {}
    for name, factory in sorted(backends.items()):
        for option in factory.options:
            by_flag.setdefault(f"--{option.name.replace('_', '-')}", []).append((name, option))
    return by_flag


def _flag(flag: str, declared: Sequence[tuple[str, BackendOption]]) -> click.Option:
    """What is taken is for the chosen backend to say, so that every way of giving it is refused alike."""
    option = declared[0][1]
    switch = option.type == "flag"
    return click.Option(
        [flag, f"{_PREFIX}{option.name}"],
        is_flag=switch,
        flag_value=True if switch else None,
        default=None,
        metavar=None if switch else _metavar(option),
        help="; ".join(_help(declared)),
    )


def _metavar(option: BackendOption) -> str:
    return f"[{'|'.join(option.choices)}]" if option.type == "text" else "N"


def _help(declared: Sequence[tuple[str, BackendOption]]) -> Iterator[str]:
    for backend, option in declared:
        default = "" if option.type == "flag" else f", {option.default} by default"
        yield f"Backend {backend}: {option.description}{default}"
