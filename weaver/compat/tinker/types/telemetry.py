"""What the vendor's SDK tells its server about a script."""

from datetime import datetime
from typing import Literal, TypeAlias

from pydantic import Field

from weaver.compat.tinker.types.base import Lenient, Strict
from weaver.compat.tinker.types.names import EventType, Severity


class SessionStartEvent(Lenient):
    """A script started."""

    event: EventType
    event_id: str
    event_session_index: int
    severity: Severity
    timestamp: datetime


class SessionEndEvent(Lenient):
    """A script ended after `duration`."""

    duration: str
    event: EventType
    event_id: str
    event_session_index: int
    severity: Severity
    timestamp: datetime


class UnhandledExceptionEvent(Lenient):
    """A script died of an exception."""

    error_message: str
    error_type: str
    event: EventType
    event_id: str
    event_session_index: int
    severity: Severity
    timestamp: datetime
    traceback: str | None = None


class GenericEvent(Lenient):
    """Anything else, by name."""

    event: EventType
    event_id: str
    event_name: str
    event_session_index: int
    severity: Severity
    timestamp: datetime
    event_data: dict[str, object] = Field(default={})


TelemetryEvent: TypeAlias = SessionStartEvent | SessionEndEvent | UnhandledExceptionEvent | GenericEvent


class TelemetryBatch(Lenient):
    """Events of one process."""

    events: list[TelemetryEvent]
    platform: str
    sdk_version: str
    session_id: str
    process_uuid: str


class TelemetrySendRequest(Strict):
    """Events of one process, to be sent."""

    events: list[TelemetryEvent]
    platform: str
    sdk_version: str
    session_id: str
    process_uuid: str


class TelemetryResponse(Lenient):
    """The events arrived."""

    status: Literal["accepted"]
