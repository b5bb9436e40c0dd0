"""Sessions: opening one, keeping it alive, how it ended, and finding it again."""

from datetime import datetime
from typing import Any, Literal, TypeAlias

from pydantic import AwareDatetime, Field

from weaver.compat.tinker.types.base import Lenient, Strict
from weaver.compat.tinker.types.names import ModelID


class CreateSessionRequest(Strict):
    """What a script says about itself when it starts."""

    tags: list[str]
    user_metadata: dict[str, Any] | None
    sdk_version: str
    project_id: str | None = None
    display_name: str | None = None
    type: Literal["create_session"] = "create_session"


class CreateSessionResponse(Lenient):
    """The session's id, and what the server wants its user to read."""

    type: Literal["create_session"] = "create_session"
    info_message: str | None = None
    warning_message: str | None = None
    error_message: str | None = None
    session_id: str


class SessionHeartbeatRequest(Strict):
    """The script still runs."""

    session_id: str
    type: Literal["session_heartbeat"] = "session_heartbeat"


class SessionHeartbeatResponse(Lenient):
    """The session is still open."""

    type: Literal["session_heartbeat"] = "session_heartbeat"


class GetSessionResponse(Lenient):
    """What belongs to a session."""

    training_run_ids: list[ModelID]
    sampler_ids: list[str]
    user_metadata: dict[str, str] | None = None
    display_name: str | None = None


class ListSessionsResponse(Lenient):
    """Ids of sessions."""

    sessions: list[str]


class SessionFailedRequestReason(Lenient):
    """An operation failed."""

    type: Literal["request"] = "request"
    request_id: str
    request_type: str


class SessionFailedTrainingRunReason(Lenient):
    """A model failed."""

    type: Literal["training_run"] = "training_run"
    training_run_id: str


class SessionFailedSamplingSessionReason(Lenient):
    """A sampler failed."""

    type: Literal["sampling_session"] = "sampling_session"
    sampling_session_id: str


SessionFailedReason: TypeAlias = (
    SessionFailedRequestReason | SessionFailedTrainingRunReason | SessionFailedSamplingSessionReason
)


class SessionFailed(Lenient):
    """The session ended in a failure, and whose fault it was."""

    type: Literal["failed"] = "failed"
    category: Literal["user", "internal"]
    reason: SessionFailedReason
    message: str


class SessionCancelled(Lenient):
    """Somebody ended the session."""

    type: Literal["cancelled"] = "cancelled"
    detail: str | None = None


class ClientSessionFinishSuccess(Lenient):
    """The script ran to its end."""

    type: Literal["success"] = "success"


class ClientSessionFinishErrored(Lenient):
    """The script raised an exception."""

    type: Literal["errored"] = "errored"


class ClientSessionFinishInterrupted(Lenient):
    """The script was interrupted."""

    type: Literal["interrupted"] = "interrupted"


ClientSessionFinishReason: TypeAlias = (
    ClientSessionFinishSuccess | ClientSessionFinishErrored | ClientSessionFinishInterrupted
)


class ClientSessionFinished(Lenient):
    """The script closed its session."""

    type: Literal["client_finished"] = "client_finished"
    reason: ClientSessionFinishReason
    detail: str | None = None


class SessionActive(Lenient):
    """The session is open."""

    type: Literal["active"] = "active"


SessionStatus: TypeAlias = SessionFailed | SessionCancelled | ClientSessionFinished | SessionActive


class OwnSearchOwner(Strict):
    """Looks through one's own sessions."""

    type: Literal["own"] = "own"


class AccessibleSearchOwner(Strict):
    """Looks through all sessions one may see."""

    type: Literal["accessible"] = "accessible"


class UserSearchOwner(Strict):
    """Looks through the sessions of one to ten users."""

    type: Literal["user"] = "user"
    owner_urns: list[str] = Field(min_length=1, max_length=10)


SearchOwner: TypeAlias = OwnSearchOwner | AccessibleSearchOwner | UserSearchOwner

ClientSessionFinishReasonType: TypeAlias = Literal["success", "errored", "interrupted"]


class ActiveSessionStatusQuery(Strict):
    """Open sessions."""

    type: Literal["active"] = "active"


class CancelledSessionStatusQuery(Strict):
    """Sessions somebody ended."""

    type: Literal["cancelled"] = "cancelled"


class FailedSessionStatusQuery(Strict):
    """Sessions that failed."""

    type: Literal["failed"] = "failed"


class ClientFinishedSessionStatusQuery(Strict):
    """Sessions their scripts closed, for any of `reasons`; None means for whatever reason."""

    type: Literal["client_finished"] = "client_finished"
    reasons: list[ClientSessionFinishReasonType] | None = Field(default=None, min_length=1)


SessionStatusQuery: TypeAlias = (
    ActiveSessionStatusQuery | CancelledSessionStatusQuery | FailedSessionStatusQuery | ClientFinishedSessionStatusQuery
)


class SessionSearchCursor(Lenient):
    """Where the last page ended."""

    last_created_at: AwareDatetime
    last_session_id: str


class SessionSearchRequest(Strict):
    """Sessions for which everything given holds, except that `session_id` or a part of `display_name` is enough.

    `cursor` is the `next_cursor` of the page before.
    """

    session_id: str | None = None
    project_ids: list[str] | None = None
    user_metadata: dict[str, str] = Field(default={})
    display_name: str | None = Field(default=None, min_length=1)
    owner: SearchOwner = OwnSearchOwner()
    statuses: list[SessionStatusQuery] | None = Field(default=None, min_length=1)
    limit: int = Field(default=50, ge=1, le=200)
    cursor: SessionSearchCursor | None = None


class SessionSummary(Lenient):
    """A session that was found."""

    session_id: str
    created_at: datetime
    owner: str
    project_id: str
    status: SessionStatus | None = None
    checkpoints_count: int
    display_name: str | None = None
    user_metadata: dict[str, str] | None = None
    checkpoint_storage_bytes: int | None = None


class SessionSearchResponse(Lenient):
    """A page of sessions; no `next_cursor` on the last one."""

    sessions: list[SessionSummary]
    next_cursor: SessionSearchCursor | None = None
