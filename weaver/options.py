"""The settings that backends and samplers declare, and the operator gives them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from weaver.domain import OptionValue
from weaver.errors import InvalidInput

_FLAGS: Final = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


@dataclass(frozen=True, slots=True)
class Option:
    """One setting, for `weaver serve --backend-option NAME=VALUE` or `--sampler-option NAME=VALUE`, or `--NAME VALUE`
    with `-` for `_`.

    `type` "int" is a whole number from `minimum` on, "flag" true or false, "text" one of the `choices`, or anything
    where there are none. "pairs" is KEY=VALUE, given as often as there are keys: a tuple of such texts.
    """

    name: str
    default: OptionValue
    description: str = ""
    type: Literal["int", "flag", "text", "pairs"] = "int"
    minimum: int = 1
    choices: tuple[str, ...] = ()

    def checked(self, given: OptionValue, kind: str = "backend") -> OptionValue:
        """`given`, also where it was written as text, as whoever declared it gets it. Raises InvalidInput naming the
        option; `kind` is what declared it."""
        text, said = str(given).lower(), f"the {kind} option {self.name} is {given!r}; it takes"
        match self.type:
            case "flag":
                if text not in _FLAGS:
                    raise InvalidInput(f"{said} true or false")
                return _FLAGS[text]
            case "text":
                if self.choices and given not in self.choices:
                    raise InvalidInput(f"{said} one of {', '.join(self.choices)}")
                return given
            case "pairs":
                return self._pairs((given,) if isinstance(given, str) else given, kind)
        if not (text.isascii() and text.isdigit() and int(text) >= self.minimum):
            raise InvalidInput(f"{said} a whole number from {self.minimum} on")
        return int(text)

    def _pairs(self, given: OptionValue, kind: str) -> tuple[str, ...]:
        if not isinstance(given, tuple | list):
            raise InvalidInput(f"the {kind} option {self.name} is {given!r}; it takes KEY=VALUE, as often as needed")
        keys = [pair.partition("=")[0] for pair in given]
        for key, pair in zip(keys, given, strict=True):
            if not key or "=" not in pair:
                raise InvalidInput(f"the {kind} option {self.name} is {pair!r}; it takes KEY=VALUE")
            if keys.count(key) > 1:
                raise InvalidInput(f"the {kind} option {self.name} gives {key} twice")
        return tuple(given)


def effective_options(
    kind: str, owner: str, options: Sequence[Option], given: Mapping[str, OptionValue]
) -> Mapping[str, OptionValue]:
    """`given` checked against what `owner` declares, with defaults filled in. Raises InvalidInput naming the option."""
    known = {option.name: option for option in options}
    for name in given:
        if name not in known:
            raise InvalidInput(f"the {kind} {owner!r} has no option {name!r}; it has: {', '.join(known) or 'none'}")
    return {name: option.checked(given.get(name, option.default), kind) for name, option in known.items()}
