"""What may go wrong on the engine's side, as the server tells it."""


class Refused(Exception):
    """The request asks for what is not done here; asking differently can help."""


class Damaged(Exception):
    """Files of an adapter are missing or cannot be read."""


class Missing(Exception):
    """A package is not installed in this environment."""


class Failed(Exception):
    """What was asked is right and could not be done."""


def kind_of(error: Exception) -> str:
    """By which name the server knows it."""
    return type(error).__name__ if isinstance(error, Refused | Damaged | Missing | Failed) else "Failed"
