"""The bodies of Tinker's endpoints about runs, checkpoints and sessions; see `requests`."""

from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, Field

from weaver.compat.tinker.requests import Computing, Metadata, SequenceNumber, refused
from weaver.service.sessions import SessionSearch

OWNER = "local"
"""Whoever has a key owns everything here."""

FINISHED = ("success", "errored", "interrupted")
"""How a client can say that its session ended."""


class SetTtl(Computing):
    """Here null is not the same as absent: it means never."""

    numbers = frozenset({"ttl_seconds"})

    ttl_seconds: int | None


class CopyWeights(Computing):
    source_path: str
    destination_project_id: str | None = None
    session_id: str | None = None
    model_seq_id: SequenceNumber | None = None
    ttl_seconds: int | None = None
    weights_access_token: Annotated[Any, refused("this server has no access tokens for weights")] = None


class AssignProject(Computing):
    project_id: str


class SearchOwner(Computing):
    type: Literal["own", "accessible", "user"]
    owner_urns: list[str] = Field(default_factory=list)


class SearchStatus(Computing):
    type: Literal["active", "cancelled", "failed", "client_finished"]
    reasons: list[Literal["success", "errored", "interrupted"]] | None = None

    def ends(self) -> frozenset[str | None]:
        match self.type:
            case "active":
                return frozenset({None})
            case "client_finished":
                return frozenset(FINISHED if self.reasons is None else self.reasons)
            case _:
                return frozenset()  # no session ends that way here


class SearchCursor(Computing):
    last_created_at: Annotated[AwareDatetime, Field(strict=False)]
    last_session_id: str


class SearchSessions(Computing):
    session_id: str | None = None
    project_ids: list[str] | None = None
    user_metadata: Metadata = Field(default_factory=dict)
    display_name: str | None = Field(default=None, min_length=1)
    owner: SearchOwner = SearchOwner(type="own")
    statuses: list[SearchStatus] | None = Field(default=None, min_length=1)
    limit: int = Field(default=50, ge=1, le=200)
    cursor: SearchCursor | None = None

    def search(self) -> SessionSearch:
        ended = None if self.statuses is None else frozenset().union(*(status.ends() for status in self.statuses))
        if self.owner.type == "user" and OWNER not in self.owner.owner_urns:
            ended = frozenset()
        return SessionSearch(self.session_id, self.display_name, self.project_ids, self.user_metadata, ended)

    def after(self) -> tuple[float, str] | None:
        cursor = self.cursor
        return None if cursor is None else (cursor.last_created_at.timestamp(), cursor.last_session_id)
