"""Sessions as their owners see them: how long they live, lists and searches."""

import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from weaver.errors import Forgotten, InvalidInput, UnknownName
from weaver.listing import Listing
from weaver.service.records import Holdings, Page, SessionInfo
from weaver.store import Row, Store

EXPIRED = "expired"


class Leases:
    """A session lives `seconds` after it was last heard of. A new server gives every one of them a new lease.

    Those that another process on the same data directory made are its own to end.
    """

    def __init__(self, seconds: float, ticks: Callable[[], float]) -> None:
        self.seconds, self._ticks = seconds, ticks
        self._started = ticks()
        self._heard: dict[str, float] = {}
        self._made: set[str] = set()
        self._lock = threading.Lock()

    def begin(self, session_id: str) -> None:
        """A session was made here."""
        with self._lock:
            self._made.add(session_id)
            self._heard[session_id] = self._ticks()

    def is_ours(self, session_id: str) -> bool:
        return session_id in self._made

    def renew(self, session_id: str) -> None:
        with self._lock:
            self._heard[session_id] = self._ticks()

    def is_over(self, session_id: str) -> bool:
        with self._lock:
            return self._ticks() - self._heard.get(session_id, self._started) >= self.seconds

    def forget(self, session_id: str) -> None:
        with self._lock:
            self._heard.pop(session_id, None)
            self._made.discard(session_id)


@dataclass(frozen=True, slots=True)
class SessionSearch:
    """What must hold of a session. `name_or_id`: with both `session_id` and `display_name`, either will do.

    `ended`: the ends that match, None among them for a session that lives; the field itself None: any.
    """

    session_id: str | None = None
    display_name: str | None = None
    project_ids: Sequence[str] | None = None
    user_metadata: Mapping[str, str] = field(default_factory=dict)
    ended: frozenset[str | None] | None = None

    def matches(self, info: SessionInfo) -> bool:
        return (
            self._is_named(info)
            and (self.project_ids is None or info.project_id in self.project_ids)
            and self.user_metadata.items() <= info.user_metadata.items()
            and (self.ended is None or info.ended in self.ended)
        )

    def _is_named(self, info: SessionInfo) -> bool:
        if self.session_id is None and self.display_name is None:
            return True
        name = (info.display_name or "").casefold()
        words = None if self.display_name is None else self.display_name.casefold().split()
        return info.session_id == self.session_id or (words is not None and all(word in name for word in words))


class Sessions:
    """Their lives, lists and searches. Every method may be called from any thread."""

    def __init__(self, store: Store, listing: Listing, leases: Leases) -> None:
        self._store, self._listing, self._leases = store, listing, leases

    def create(
        self,
        user_metadata: Mapping[str, str],
        tags: Sequence[str],
        project_id: str | None,
        display_name: str | None,
        sdk_version: str,
    ) -> str:
        """A new session's id."""
        session_id = str(uuid.uuid4())
        details = {
            "user_metadata": dict(user_metadata),
            "tags": list(tags),
            "project_id": project_id,
            "display_name": display_name,
            "sdk_version": sdk_version,
        }
        self._store.add_session(session_id, details)
        self._leases.begin(session_id)
        return session_id

    def living(self, session_id: str) -> Row:
        """A session that has been heard of just now. Raises Forgotten when it has ended or is unknown."""
        row = self._store.session(session_id)
        if row is None or row["ended"] is not None:
            raise Forgotten(f"there is no session {session_id!r}, or it has ended; create a new one")
        self._leases.renew(session_id)
        return row

    def renew(self, session_id: str) -> None:
        """Something was asked by it."""
        self._leases.renew(session_id)

    def silent(self, is_alone: Callable[[], bool]) -> list[str]:
        """Living ones whose leases are over; those of other processes only when there are no other processes."""
        over = [session_id for session_id in self._listing.living_sessions() if self._leases.is_over(session_id)]
        ours = [session_id for session_id in over if self._leases.is_ours(session_id)]
        return over if len(ours) < len(over) and is_alone() else ours

    def end(self, session_id: str, reason: str) -> None:
        self._store.end_session(session_id, reason)
        self._leases.forget(session_id)

    def page(self, limit: int, offset: int) -> Page[SessionInfo]:
        rows, total = self._listing.sessions(limit, offset)
        return Page(tuple(map(session_info, rows)), offset, limit, total)

    def info(self, session_id: str) -> SessionInfo:
        return session_info(self._row(session_id))

    def runs(self, session_id: str) -> tuple[str, ...]:
        """The ids of its training runs, in order."""
        return tuple(row["model_id"] for row in self._listing.runs_of(session_id))

    def samplers(self, session_id: str) -> tuple[str, ...]:
        return tuple(row["sampling_session_id"] for row in self._store.samplers_of(session_id))

    def search(
        self, wanted: SessionSearch, after: tuple[float, str] | None, limit: int
    ) -> tuple[list[SessionInfo], bool]:
        """Newest first, those after the session of that time and id; and whether there are more."""
        found = [info for row in self._listing.all_sessions() if wanted.matches(info := session_info(row))]
        found.sort(key=_age, reverse=True)
        left = [info for info in found if after is None or _age(info) < after]
        return left[:limit], len(left) > limit

    def holdings(self, session_ids: Sequence[str]) -> Mapping[str, Holdings]:
        """The checkpoints of each."""
        found = self._listing.holdings_by_session(session_ids)
        return {session_id: Holdings(*found.get(session_id, (0, 0))) for session_id in session_ids}

    def holdings_by_project(self, project_id: str | None) -> Mapping[str | None, Holdings]:
        """The checkpoints of one project, or of each that has any; None: of sessions without a project."""
        found = self._listing.holdings_by_project()
        wanted = found if project_id is None else {project_id: found[project_id]} if project_id in found else {}
        return {key: Holdings(*held) for key, held in wanted.items()}

    def events(self, start: float, end: float) -> Sequence[Row]:
        """What was done to checkpoints and projects, in order: rows with `at`, `event` and `details`."""
        return self._listing.events(start, end)

    def move(self, session_id: str, project_id: str) -> None:
        """Put a session, with all its runs, into a project."""
        if not project_id:
            raise InvalidInput("project_id is empty; a session can be moved into another project, but not out of all")
        details = self._row(session_id)["details"]
        self._listing.set_details(session_id, {**details, "project_id": project_id})
        event = {"session_id": session_id, "from": details["project_id"], "project_id": project_id}
        self._listing.note_event("project_assign_session", event)

    def _row(self, session_id: str) -> Row:
        row = self._store.session(session_id)
        if row is None:
            raise UnknownName(f"there is no session {session_id!r} here")
        return row


def session_info(row: Row) -> SessionInfo:
    ended, _, detail = (row["ended"] or "").partition(": ")
    details = row["details"]
    return SessionInfo(
        session_id=row["session_id"],
        created=round(row["created"], 6),  # as a client gets it, which sends it back to go on from there
        ended=ended or None,
        ended_detail=detail or None,
        project_id=details["project_id"],
        display_name=details["display_name"],
        user_metadata=details["user_metadata"],
    )


def _age(info: SessionInfo) -> tuple[float, str]:
    return info.created, info.session_id
