"""Data that a service keeps for its users: names of samples, and what training on them tells.

weaver's own server keeps none and says so; these are for services that do.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Self, TypeAlias, overload

WEAVER_REDACTED_TOKEN_ID: Final = -8
"""Stands for a token that its owner does not show."""
MOST_DATUM_ID: Final = 255
MOST_NAME: Final = 160
MOST_VERSION: Final = 128

ManagedDatasetVisibility: TypeAlias = Literal["protected", "public"]

_VISIBILITIES: Final = ("protected", "public")
_OUTPUT_FIELDS: Final = ("kind", "datum_id", "sample_ref", "input_token_count", "content_visibility", "target_tokens")


def datum_id(value: Any) -> str:
    """Raises ValueError for what cannot tell data apart."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError("datum_id must be a non-empty string")
    if len(value.strip()) > MOST_DATUM_ID:
        raise ValueError(f"datum_id must be at most {MOST_DATUM_ID} characters")
    return value.strip()


def one_dimensional(value: Any, name: str) -> list[Any]:
    """The numbers of a list, of {"data", ...} or of a tensor. Raises ValueError for any other shape."""
    if isinstance(value, Mapping):
        value = value.get("data")
    found = getattr(value, "data", value) if hasattr(value, "to_dict") else value
    found = found.tolist() if hasattr(found, "tolist") else found
    if not isinstance(found, Sequence) or isinstance(found, str | bytes):
        raise ValueError(f"{name} must be a one-dimensional array")
    if any(isinstance(item, Sequence) for item in found):
        raise ValueError(f"{name} must be one-dimensional")
    return list(found)


def segment(value: Any, name: str, most: int) -> str:
    """One part of a URL's path. Raises ValueError for anything that is more or less."""
    if not isinstance(value, str) or not value or value != value.strip():
        raise ValueError(f"{name} must be a non-empty string without spaces around it")
    if len(value) > most:
        raise ValueError(f"{name} must be at most {most} characters")
    if value in (".", "..") or "/" in value or "\\" in value or not value.isprintable():
        raise ValueError(f"{name} must be a single safe path segment")
    return value


def _count(value: Any, name: str, least: int = 0) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}")
    return value


def _visibility(value: Any) -> ManagedDatasetVisibility:
    if value not in _VISIBILITIES:
        raise ValueError("content_visibility must be 'protected' or 'public'")
    return "protected" if value == "protected" else "public"


@dataclass(frozen=True, slots=True)
class SampleRef:
    """One sample of a dataset that a service keeps."""

    dataset: str
    version: str
    sample_idx: int

    def __post_init__(self) -> None:
        segment(self.dataset, "dataset", MOST_NAME)
        segment(self.version, "version", MOST_VERSION)
        _count(self.sample_idx, "sample_idx")

    def to_payload(self) -> dict[str, object]:
        """As JSON has it."""
        return {"dataset": self.dataset, "version": self.version, "sample_idx": self.sample_idx}

    @classmethod
    def from_payload(cls, payload: Mapping[str, Any]) -> Self:
        """From a service's answer."""
        return cls(payload.get("dataset", ""), payload.get("version", ""), payload.get("sample_idx", -1))


@dataclass(frozen=True, slots=True)
class SampleRefLength:
    """How many tokens a model reads of a sample."""

    sample_ref: SampleRef
    input_token_count: int

    def __post_init__(self) -> None:
        _count(self.input_token_count, "input_token_count", 1)

    @classmethod
    def from_payload(cls, payload: Mapping[str, Any]) -> Self:
        """From a service's answer."""
        return cls(SampleRef.from_payload(payload), payload.get("input_token_count", 0))


@dataclass(frozen=True, slots=True)
class ManagedDatasetInfo:
    """One version of a dataset that a service keeps."""

    name: str
    version: str
    description: str
    sample_count: int
    recommended_ratio: float | None
    compatible_models: tuple[str, ...]
    status: str
    content_visibility: ManagedDatasetVisibility

    @classmethod
    def from_payload(cls, payload: Mapping[str, Any]) -> Self:
        """From a service's answer."""
        ratio = payload.get("recommended_ratio")
        return cls(
            name=segment(payload.get("name"), "name", MOST_NAME),
            version=segment(payload.get("version"), "version", MOST_VERSION),
            description=str(payload.get("description") or ""),
            sample_count=_count(payload.get("sample_count"), "sample_count"),
            recommended_ratio=None if ratio is None else float(ratio),
            compatible_models=tuple(payload.get("compatible_models") or ()),
            status=str(payload.get("status") or ""),
            content_visibility=_visibility(payload.get("content_visibility")),
        )


@dataclass(frozen=True, slots=True)
class ManagedDatasetPage(Sequence[ManagedDatasetInfo]):
    """Some of the datasets there are."""

    items: tuple[ManagedDatasetInfo, ...]
    limit: int
    offset: int
    total_count: int

    @property
    def has_more(self) -> bool:
        """Whether there are any behind these."""
        return self.offset + len(self.items) < self.total_count

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[ManagedDatasetInfo]:
        return iter(self.items)

    @overload
    def __getitem__(self, index: int) -> ManagedDatasetInfo: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[ManagedDatasetInfo, ...]: ...

    def __getitem__(self, index: int | slice) -> ManagedDatasetInfo | tuple[ManagedDatasetInfo, ...]:
        return self.items[index]

    @classmethod
    def from_payload(cls, payload: Mapping[str, Any], *, requested_limit: int, requested_offset: int) -> Self:
        """From a service's answer; the page's place is what was asked for where it does not say."""
        items = payload.get("items")
        if not isinstance(items, list):
            raise ValueError("managed dataset list response must contain an items array")
        page = payload.get("pagination") or {}
        return cls(
            items=tuple(ManagedDatasetInfo.from_payload(item) for item in items),
            limit=_count(page.get("limit", requested_limit), "pagination.limit"),
            offset=_count(page.get("offset", requested_offset), "pagination.offset"),
            total_count=_count(page.get("total_count", len(items)), "pagination.total_count"),
        )


@dataclass(frozen=True, slots=True)
class SampleRefOutput:
    """What training on a kept sample told, position by position. Of protected content, tokens are all -8."""

    datum_id: str
    sample_ref: SampleRef
    input_token_count: int
    content_visibility: ManagedDatasetVisibility
    target_tokens: tuple[int, ...] | None = None
    logprobs: tuple[float, ...] | None = None
    elementwise_loss: tuple[float, ...] | None = None
    token_outputs: Mapping[str, Any] = field(default_factory=dict)
    derived_outputs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_redacted(self) -> bool:
        """Whether its tokens are hidden."""
        return self.content_visibility == "protected"

    @property
    def redacted_token_outputs(self) -> Mapping[str, tuple[int, ...]]:
        """The tokens that are hidden; none of public content."""
        return self.token_outputs if self.is_redacted else {}

    def get_derived_output(self, name: str) -> Any:
        """One of its numbers by name; None where there is none."""
        own = {"logprobs": self.logprobs, "elementwise_loss": self.elementwise_loss}
        return own[name] if name in own else self.derived_outputs.get(name)

    @classmethod
    def from_payload(cls, payload: Mapping[str, Any]) -> Self:
        """From a service's answer. Raises ValueError for one that shows what it says is protected."""
        if payload.get("kind") != "sample_ref_output":
            raise ValueError("managed output kind must be 'sample_ref_output'")
        count = _count(payload.get("input_token_count"), "input_token_count", 1)
        visibility = _visibility(payload.get("content_visibility"))
        rest = {name: value for name, value in payload.items() if name not in _OUTPUT_FIELDS}
        tokens = {name: value for name, value in rest.items() if name.endswith(("tokens", "token_ids", "labels"))}
        if visibility == "protected":
            tokens = {name: _hidden(value, name, count) for name, value in tokens.items()}
            shown = sorted(rest.keys() - tokens.keys())
            if shown:
                raise ValueError(f"a protected managed output may not have {', '.join(shown)}")
        targets = None
        if "target_tokens" in payload:
            read = _hidden if visibility == "protected" else _aligned
            targets = read(payload["target_tokens"], "target_tokens", count)
        numbers = {name: rest.pop(name) for name in ("logprobs", "elementwise_loss") if name in rest}
        return cls(
            datum_id=datum_id(payload.get("datum_id")),
            sample_ref=SampleRef.from_payload(payload.get("sample_ref") or {}),
            input_token_count=count,
            content_visibility=visibility,
            target_tokens=targets,
            token_outputs=tokens,
            derived_outputs={name: value for name, value in rest.items() if name not in tokens},
            **{name: _aligned(value, name, count) for name, value in numbers.items()},
        )


def _aligned(value: Any, name: str, count: int) -> tuple[Any, ...]:
    found = one_dimensional(value, name)
    if len(found) != count:
        raise ValueError(f"{name} length must equal input_token_count")
    return tuple(found)


def _hidden(value: Any, name: str, count: int) -> tuple[Any, ...]:
    found = _aligned(value, name, count)
    if set(found) != {WEAVER_REDACTED_TOKEN_ID}:
        raise ValueError(f"managed {name} may contain only the -8 sentinel")
    return found
