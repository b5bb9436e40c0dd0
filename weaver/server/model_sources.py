"""`--model NAME[=HUB_ID_OR_FOLDER]`: the base models that a command is about."""

from weaver.backend import ModelSource
from weaver.config import DEMO_LOCATION, DEMO_MODEL
from weaver.errors import InvalidInput


def model_sources(models: tuple[str, ...], device: str, dtype: str) -> tuple[ModelSource, ...]:
    """`NAME` loads itself; `NAME=LOCATION` is an alias that clients know by NAME."""
    pairs = [_pair(model) for model in models] or [(DEMO_MODEL, DEMO_LOCATION)]
    names = [name for name, _ in pairs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InvalidInput(f"--model {twice[0]} is given twice; a name stands for one model")
    return tuple(ModelSource(name, location, device, dtype) for name, location in pairs)


def _pair(model: str) -> tuple[str, str]:
    name, separator, location = model.partition("=")
    if not name or (separator and not location):
        raise InvalidInput(f"--model {model!r} must be NAME or NAME=HUB_ID_OR_FOLDER")
    return name, location or name
