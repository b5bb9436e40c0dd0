"""Base models' names: a suffix `:<length>` names the longest sequence, as this SDK chooses long contexts."""

from weaver.errors import InvalidInput
from weaver.service import Service


def served_name(service: Service, name: str) -> tuple[str, int | None]:
    """The served model of a name, and the length that the name ends in. Raises InvalidInput.

    A length is taken only where no model of the whole name is served, and must fit the model's context.
    """
    short, separator, length = name.rpartition(":")
    served = {model.name for model in service.supported_models()}
    if name in served or not separator or not (length.isascii() and length.isdigit()):
        return name, None
    check_length(service, short, int(length), f"base_model {name!r} ends in a length that")
    return short, int(length)


def check_length(service: Service, base_model: str, length: int, what: str) -> None:
    most = service.base_model(base_model).context_length
    if not 2 <= length <= most:
        raise InvalidInput(f"{what} is {length}; for {base_model!r} it must be from 2 to {most}")
