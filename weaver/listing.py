"""The store's lists, searches and marks: runs, checkpoints and sessions as their owners look at them.

What is deleted loses its row at once and its folder later: a folder is thrown away when no living session samples from
it any more, also after a crash in between.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import sqlalchemy as sa

from weaver.store import (
    Row,
    Store,
    checkpoints,
    discarded,
    discarded_row,
    metadata,
    models,
    published,
    samplers,
    sessions,
)

last_requests = sa.Table(
    "last_requests",
    metadata,
    sa.Column("model_id", sa.String, primary_key=True),
    sa.Column("at", sa.Float, nullable=False),
)
audit = sa.Table(
    "audit",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("at", sa.Float, nullable=False, index=True),
    sa.Column("event", sa.String, nullable=False),
    sa.Column("details", sa.JSON, nullable=False),
)

usage = sa.Table(
    "usage",
    metadata,
    sa.Column("began", sa.Integer, primary_key=True),
    sa.Column("source", sa.String, primary_key=True),
    sa.Column("kind", sa.String, primary_key=True),
    sa.Column("quantity", sa.Integer, nullable=False),
)

Rows = list[Row]
UsageKey = tuple[int, str, str]
"""The hour, what was asked (a model or a sampling session), and what is counted."""

_PROJECT = sessions.c.details["project_id"].as_string()


class Listing:
    """Every method is one short transaction and may be called from any thread."""

    def __init__(self, store: Store) -> None:
        self._engine, self._clock = store.engine, store.clock
        metadata.create_all(self._engine)

    # Training runs

    def runs(self, limit: int, offset: int, project_id: str | None) -> tuple[Rows, int]:
        """Newest first, and how many there are in all."""
        wanted = _runs()
        if project_id is not None:
            wanted = wanted.where(project_id == _PROJECT)
        newest = (models.c.created.desc(), models.c.model_id)
        return self._page(wanted, newest, limit, offset)

    def run(self, model_id: str) -> Row | None:
        return next(iter(self._all(_runs().where(models.c.model_id == model_id))), None)

    def runs_of(self, session_id: str) -> Rows:
        return self._all(_runs().where(models.c.session_id == session_id).order_by(models.c.created))

    def note_requests(self, times: Mapping[str, float]) -> None:
        """When each model was last asked for something."""
        with self._engine.begin() as connection:
            for model_id, at in times.items():
                connection.execute(last_requests.delete().where(last_requests.c.model_id == model_id))
                connection.execute(last_requests.insert().values(model_id=model_id, at=at))

    # Checkpoints

    def checkpoints(self, limit: int, offset: int) -> tuple[Rows, int]:
        """Newest first, and how many there are in all."""
        return self._page(self._unexpired(), _NEWEST_CHECKPOINT, limit, offset)

    def checkpoints_of(self, model_ids: Iterable[str]) -> Rows:
        """Newest first."""
        mine = self._unexpired().where(checkpoints.c.model_id.in_(list(model_ids)))
        return self._all(mine.order_by(*_NEWEST_CHECKPOINT))

    def set_public(self, path: str, *, public: bool) -> None:
        with self._engine.begin() as connection:
            connection.execute(published.delete().where(published.c.path == path))
            if public:
                connection.execute(published.insert().values(path=path))

    def set_expiry(self, path: str, expires: float | None) -> None:
        with self._engine.begin() as connection:
            connection.execute(checkpoints.update().where(checkpoints.c.path == path).values(expires=expires))

    def discard(self, path: str) -> None:
        """Remove a checkpoint's row; its folder is thrown away when nobody samples from it."""
        self._discard(checkpoints.c.path == path)

    def discard_expired(self) -> None:
        self._discard(checkpoints.c.expires <= self._clock())

    def unused(self) -> Rows:
        """What was discarded and no living session samples from: rows with `folder`, `base_model`, `adapter_id`."""
        living = (
            sa.select(samplers.c.folder)
            .join(sessions, sessions.c.session_id == samplers.c.session_id)
            .where(sessions.c.ended.is_(None), samplers.c.folder.is_not(None))
        )
        return self._all(sa.select(discarded).where(discarded.c.folder.not_in(living)))

    def forget_folder(self, folder: str) -> None:
        with self._engine.begin() as connection:
            connection.execute(discarded.delete().where(discarded.c.folder == folder))

    def holdings_by_session(self, session_ids: Iterable[str]) -> Mapping[str, tuple[int, int]]:
        """Number and bytes of the checkpoints of each session that has any."""
        ids = list(session_ids)
        rows = self._all(self._held(models.c.session_id).where(models.c.session_id.in_(ids)))
        return {row["key"]: (row["count"], row["size_bytes"]) for row in rows}

    def holdings_by_project(self) -> Mapping[str | None, tuple[int, int]]:
        rows = self._all(self._held(_PROJECT))
        return {row["key"]: (row["count"], row["size_bytes"]) for row in rows}

    # Sessions

    def sessions(self, limit: int, offset: int) -> tuple[Rows, int]:
        """Newest first, and how many there are in all."""
        newest = (sessions.c.created.desc(), sessions.c.session_id.desc())
        return self._page(sa.select(sessions), newest, limit, offset)

    def all_sessions(self) -> Rows:
        return self._all(sa.select(sessions))

    def living_sessions(self) -> list[str]:
        return [
            row["session_id"] for row in self._all(sa.select(sessions.c.session_id).where(sessions.c.ended.is_(None)))
        ]

    def set_details(self, session_id: str, details: Mapping[str, Any]) -> None:
        with self._engine.begin() as connection:
            changed = sessions.update().where(sessions.c.session_id == session_id)
            connection.execute(changed.values(details=dict(details)))

    # What was done

    def note_event(self, event: str, details: Mapping[str, Any]) -> None:
        with self._engine.begin() as connection:
            connection.execute(audit.insert().values(at=self._clock(), event=event, details=dict(details)))

    def events(self, start: float, end: float) -> Rows:
        """In order, from `start` on and before `end`."""
        between = sa.select(audit).where(audit.c.at >= start, audit.c.at < end)
        return self._all(between.order_by(audit.c.at, audit.c.number))

    def add_usage(self, counted: Mapping[UsageKey, int]) -> None:
        with self._engine.begin() as connection:
            for (began, source, kind), quantity in counted.items():
                same = (usage.c.began == began) & (usage.c.source == source) & (usage.c.kind == kind)
                more = usage.update().where(same).values(quantity=usage.c.quantity + quantity)
                if not connection.execute(more).rowcount:
                    row = {"began": began, "source": source, "kind": kind, "quantity": quantity}
                    connection.execute(usage.insert().values(**row))

    def usage(self, start: int, end: int) -> Rows:
        """Of the hours from `start` on and before `end`, with the session and the base model of each."""
        base_model = sa.func.coalesce(models.c.base_model, samplers.c.base_model).label("base_model")
        owner = sa.func.coalesce(models.c.session_id, samplers.c.session_id)
        user_metadata = sessions.c.details["user_metadata"].label("user_metadata")
        wanted = (
            sa.select(usage, base_model, sessions.c.session_id, _PROJECT.label("project_id"), user_metadata)
            .outerjoin(models, models.c.model_id == usage.c.source)
            .outerjoin(samplers, samplers.c.sampling_session_id == usage.c.source)
            .join(sessions, sessions.c.session_id == owner)
        )
        return self._all(wanted.where(usage.c.began >= start, usage.c.began < end))

    def _unexpired(self) -> "sa.Select[Any]":
        """Checkpoints' rows with a column `public`."""
        public = published.c.path.is_not(None).label("public")
        joined = sa.select(checkpoints, public).outerjoin(published, published.c.path == checkpoints.c.path)
        return joined.where(self._lives())

    def _lives(self) -> sa.ColumnElement[bool]:
        return checkpoints.c.expires.is_(None) | (checkpoints.c.expires > self._clock())

    def _held(self, key: sa.ColumnElement[Any]) -> "sa.Select[Any]":
        size = sa.func.sum(checkpoints.c.size_bytes).label("size_bytes")
        return (
            sa.select(key.label("key"), sa.func.count().label("count"), size)
            .select_from(checkpoints)
            .join(models, models.c.model_id == checkpoints.c.model_id)
            .join(sessions, sessions.c.session_id == models.c.session_id)
            .where(self._lives())
            .group_by(key)
        )

    def _discard(self, condition: sa.ColumnElement[bool]) -> None:
        with self._engine.begin() as connection:
            gone = connection.execute(checkpoints.select().where(condition)).mappings().all()
            for row in gone:
                connection.execute(discarded.insert().values(**discarded_row(dict(row))))
                connection.execute(published.delete().where(published.c.path == row["path"]))
                connection.execute(checkpoints.delete().where(checkpoints.c.folder == row["folder"]))

    def _page(
        self, wanted: "sa.Select[Any]", order: tuple[sa.ColumnElement[Any], ...], limit: int, offset: int
    ) -> tuple[Rows, int]:
        with self._engine.connect() as connection:
            total = connection.execute(sa.select(sa.func.count()).select_from(wanted.subquery())).scalar_one()
            found = connection.execute(wanted.order_by(*order).limit(limit).offset(offset)).mappings()
            return [dict(row) for row in found], int(total)

    def _all(self, wanted: "sa.Select[Any]") -> Rows:
        with self._engine.connect() as connection:
            return [dict(row) for row in connection.execute(wanted).mappings()]


_NEWEST_CHECKPOINT = (checkpoints.c.created.desc(), checkpoints.c.path)


def _runs() -> "sa.Select[Any]":
    """Models' rows, with `at`: when each was last asked for something, where that is known."""
    return (
        sa.select(models, last_requests.c.at)
        .join(sessions, sessions.c.session_id == models.c.session_id)
        .outerjoin(last_requests, last_requests.c.model_id == models.c.model_id)
    )
