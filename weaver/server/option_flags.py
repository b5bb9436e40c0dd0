"""The flags of `weaver serve` that backends and samplers declare: `--tp 2` is `--backend-option tp=2`."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import click

from weaver.config import disabled_plugins
from weaver.domain import OptionValue
from weaver.errors import InvalidInput, WeaverError
from weaver.options import Option
from weaver.registry import load_registry

_FLAGS: Final = "weaver.option_flags"


@dataclass(frozen=True, slots=True)
class _Declared:
    """An option, what declares it, and the name of that."""

    kind: str
    owner: str
    option: Option


class ServeCommand(click.Command):
    """A command with a flag for each option that an installed backend or sampler declares; its own flags come first,
    and then those of backends."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        if _FLAGS not in ctx.meta:  # once for each time it is called
            ctx.meta[_FLAGS] = self._flags()
        return [*super().get_params(ctx), *ctx.meta[_FLAGS]]

    def _flags(self) -> Sequence[click.Option]:
        taken = {name for parameter in self.params for name in parameter.opts}
        return [_flag(name, declared) for name, declared in _declared().items() if name not in taken]


def given_options(
    kind: str, texts: Sequence[str], flags: Mapping[str, OptionValue | tuple[str, ...] | None]
) -> dict[str, OptionValue]:
    """What was given to the backend or the sampler, by the option's name. What an option takes more than once comes as
    a tuple. Raises InvalidInput for one that is not NAME=VALUE, or is given twice and is not of that type."""
    prefix, repeatable = _prefix(kind), _repeatable(kind)
    given: dict[str, OptionValue] = {
        name.removeprefix(prefix): value
        for name, value in flags.items()
        if name.startswith(prefix) and value not in (None, ())
    }
    for text in texts:
        name, separator, value = text.partition("=")
        if not name or not separator:
            raise InvalidInput(f"--{kind}-option {text!r} must be NAME=VALUE")
        name = name.replace("-", "_")
        if name in repeatable:
            given[name] = (*given.get(name, ()), value)  # type: ignore[misc]
            continue
        if name in given:
            raise InvalidInput(f"the {kind} option {name} is given twice")
        given[name] = value
    return given


def _all() -> Iterator[_Declared]:
    try:
        registry = load_registry(disabled_plugins())
    except WeaverError as error:
        raise click.ClickException(str(error)) from error
    for owner, backend in sorted(registry.backends.items()):
        yield from (_Declared("backend", owner, option) for option in backend.options)
    for owner, sampler in sorted(registry.samplers.items()):
        yield from (_Declared("sampler", owner, option) for option in sampler.options)


def _declared() -> Mapping[str, list[_Declared]]:
    """By flag, who has it. A flag that backends have is theirs."""
    by_flag: dict[str, list[_Declared]] = {}
    for one in _all():
        same = by_flag.setdefault(f"--{one.option.name.replace('_', '-')}", [])
        if not same or same[0].kind == one.kind:
            same.append(one)
    return by_flag


def _repeatable(kind: str) -> set[str]:
    return {one.option.name for one in _all() if one.kind == kind and one.option.type == "pairs"}


def _prefix(kind: str) -> str:
    return f"{kind}_option_"


def _flag(flag: str, declared: Sequence[_Declared]) -> click.Option:
    """What is taken is for the chosen backend or sampler to say, so that every way of giving it is refused alike."""
    option = declared[0].option
    switch = option.type == "flag"
    return click.Option(
        [flag, f"{_prefix(declared[0].kind)}{option.name}"],
        is_flag=switch,
        flag_value=True if switch else None,
        multiple=option.type == "pairs",
        default=None,
        metavar=None if switch else _metavar(option),
        help="; ".join(_help(declared)),
    )


def _metavar(option: Option) -> str:
    match option.type:
        case "text":
            return f"[{'|'.join(option.choices)}]" if option.choices else "TEXT"
        case "pairs":
            return "KEY=VALUE"
    return "N"


def _help(declared: Sequence[_Declared]) -> Iterator[str]:
    for one in declared:
        told = one.option.type != "flag" and one.option.default not in ("", ())
        default = f", {one.option.default} by default" if told else ""
        yield f"{one.kind.capitalize()} {one.owner}: {one.option.description}{default}"
