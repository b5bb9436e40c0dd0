"""The two temperaments of Tinker's pydantic types: what a user writes refuses unknown fields, what a server answers
ignores them. Both are frozen and print as they are written."""

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """A type that users build: a field nobody reads is refused, so that a misspelt one is not lost."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    def __str__(self) -> str:
        return repr(self)


class Lenient(BaseModel):
    """A type that servers answer with: fields of newer servers are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())

    def __str__(self) -> str:
        return repr(self)
