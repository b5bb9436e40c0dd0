"""Rows that outlive the process: sessions, models, samplers, checkpoints, and for a day what was sampled.

SQLite by default, PostgreSQL by URL. Weights lie in folders (`weaver.checkpoints`); a row is written only after its
folder is complete.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.pool import StaticPool

from weaver.domain import ADAMW, LoraSpec

metadata = sa.MetaData()

sessions = sa.Table(
    "sessions",
    metadata,
    sa.Column("session_id", sa.String, primary_key=True),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("ended", sa.String),
    sa.Column("details", sa.JSON, nullable=False),
)
models = sa.Table(
    "models",
    metadata,
    sa.Column("model_id", sa.String, primary_key=True),
    sa.Column("session_id", sa.String, nullable=False),
    sa.Column("base_model", sa.String, nullable=False),
    sa.Column("lora", sa.JSON, nullable=False),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("user_metadata", sa.JSON, nullable=False),
    sa.Column("optimizer", sa.String, nullable=False, server_default=ADAMW),
)
samplers = sa.Table(
    "samplers",
    metadata,
    sa.Column("sampling_session_id", sa.String, primary_key=True),
    sa.Column("session_id", sa.String, nullable=False),
    sa.Column("base_model", sa.String, nullable=False),
    sa.Column("model_path", sa.String),
    sa.Column("adapter_id", sa.String),
    sa.Column("folder", sa.String),
)
inflight = sa.Table(
    "inflight",
    metadata,
    sa.Column("sampling_session_id", sa.String, primary_key=True),
    sa.Column("model_id", sa.String, nullable=False, index=True),
    sa.Column("version", sa.Integer, nullable=False),
)
clones = sa.Table(
    "clones",
    metadata,
    sa.Column("sampling_session_id", sa.String, primary_key=True),
    sa.Column("clone", sa.Integer, primary_key=True),
)
checkpoints = sa.Table(
    "checkpoints",
    metadata,
    sa.Column("path", sa.String, primary_key=True),
    sa.Column("model_id", sa.String, nullable=False, index=True),
    sa.Column("kind", sa.String, nullable=False),
    sa.Column("name", sa.String, nullable=False),
    sa.Column("base_model", sa.String, nullable=False),
    sa.Column("lora", sa.JSON, nullable=False),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("expires", sa.Float),
    sa.Column("size_bytes", sa.Integer, nullable=False),
    sa.Column("folder", sa.String, nullable=False),
    sa.Column("user_metadata", sa.JSON, nullable=False),
    sa.Column("optimizer", sa.String, nullable=False, server_default=ADAMW),
)
published = sa.Table(
    "published",
    metadata,
    sa.Column("path", sa.String, primary_key=True),
)
discarded = sa.Table(
    "discarded",
    metadata,
    sa.Column("folder", sa.String, primary_key=True),
    sa.Column("base_model", sa.String, nullable=False),
    sa.Column("adapter_id", sa.String, nullable=False),
)
sampled_sequences = sa.Table(
    "sampled_sequences",
    metadata,
    sa.Column("sequence_id", sa.String, primary_key=True),
    sa.Column("session_id", sa.String, nullable=False),
    sa.Column("expires", sa.Float, nullable=False, index=True),
    sa.Column("tokens", sa.LargeBinary, nullable=False),
    sa.Column("logprobs", sa.LargeBinary, nullable=False),
)
documents = sa.Table(
    "documents",
    metadata,
    sa.Column("kind", sa.String, primary_key=True),
    sa.Column("document_id", sa.String, primary_key=True),
    sa.Column("created", sa.Float, nullable=False, index=True),
    sa.Column("body", sa.JSON, nullable=False),
)

Row = Mapping[str, Any]


class Store:
    """The database. Every method is one short transaction and may be called from any thread."""

    def __init__(self, url: str, clock: Callable[[], float] = time.time) -> None:
        self.clock = clock
        options: dict[str, Any] = {}
        if url == "sqlite://":
            options = {"poolclass": StaticPool, "connect_args": {"check_same_thread": False}}
        self._engine = sa.create_engine(url, **options)
        if self._engine.dialect.name == "sqlite":
            sa.event.listen(self._engine, "connect", _tune_sqlite)
        metadata.create_all(self._engine)

    @classmethod
    def in_folder(cls, folder: Path, clock: Callable[[], float] = time.time) -> "Store":
        """The SQLite database of a data directory."""
        folder.mkdir(parents=True, exist_ok=True)
        return cls(f"sqlite:///{folder / 'weaver.sqlite'}", clock)

    @property
    def engine(self) -> sa.Engine:
        """For what only lists, searches and counts: `weaver.listing`."""
        return self._engine

    def add_session(self, session_id: str, details: Mapping[str, Any]) -> None:
        self._insert(sessions, session_id=session_id, created=self.clock(), details=dict(details))

    def end_session(self, session_id: str, reason: str) -> None:
        with self._engine.begin() as connection:
            connection.execute(sessions.update().where(sessions.c.session_id == session_id).values(ended=reason))

    def session(self, session_id: str) -> Row | None:
        return self._one(sessions, sessions.c.session_id == session_id)

    def add_model(
        self,
        model_id: str,
        session_id: str,
        base_model: str,
        lora: LoraSpec,
        user_metadata: Mapping[str, str],
        optimizer: str = ADAMW,
    ) -> None:
        """Write a model's row, in the place of one that a server left which died before it could acknowledge it."""
        values = {
            "model_id": model_id,
            "session_id": session_id,
            "base_model": base_model,
            "lora": asdict(lora),
            "created": self.clock(),
            "user_metadata": dict(user_metadata),
            "optimizer": optimizer,
        }
        with self._engine.begin() as connection:
            connection.execute(models.delete().where(models.c.model_id == model_id))
            connection.execute(models.insert().values(**values))

    def model(self, model_id: str) -> Row | None:
        return self._one(models, models.c.model_id == model_id)

    def add_sampler(self, **values: Any) -> None:
        self._insert(samplers, **values)

    def sampler(self, sampling_session_id: str) -> Row | None:
        return self._one(samplers, samplers.c.sampling_session_id == sampling_session_id)

    def add_inflight(self, model_id: str, sampling_session_id: str) -> int:
        """The sampler is the model's newest inflight one: returns its version, from 1 on."""
        highest = sa.select(sa.func.coalesce(sa.func.max(inflight.c.version), 0)).where(inflight.c.model_id == model_id)
        with self._engine.begin() as connection:
            version = int(connection.execute(highest).scalar_one()) + 1
            values = {"sampling_session_id": sampling_session_id, "model_id": model_id, "version": version}
            connection.execute(inflight.insert().values(**values))
        return version

    def newest_inflight(self, sampling_session_id: str) -> Row | None:
        """The row of the newest inflight sampler of the same model, with its `model_id` and `version`; None where the
        sampling session is not an inflight one."""
        mine = sa.select(inflight.c.model_id).where(inflight.c.sampling_session_id == sampling_session_id)
        newest = (
            sa.select(samplers, inflight.c.model_id, inflight.c.version)
            .join(inflight, inflight.c.sampling_session_id == samplers.c.sampling_session_id)
            .where(inflight.c.model_id == mine.scalar_subquery())
            .order_by(inflight.c.version.desc())
            .limit(1)
        )
        with self._engine.connect() as connection:
            found = connection.execute(newest).mappings().first()
        return None if found is None else dict(found)

    def add_clone(self, sampling_session_id: str) -> int:
        """One more client of a sampling session: its number, from 1 on; 0 is the first client's."""
        highest = sa.func.coalesce(sa.func.max(clones.c.clone), 0)
        mine = sa.select(sa.literal(sampling_session_id), highest + 1).where(
            clones.c.sampling_session_id == sampling_session_id
        )
        # One statement: two processes that join at once get two numbers.
        insert = clones.insert().from_select(["sampling_session_id", "clone"], mine).returning(clones.c.clone)
        with self._engine.begin() as connection:
            return int(connection.execute(insert).scalar_one())

    def samplers_of(self, session_id: str) -> list[Row]:
        return self._many(samplers, samplers.c.session_id == session_id)

    def put_checkpoint(self, *, discard_replaced: bool = False, **values: Any) -> Row | None:
        """Write a checkpoint's row in the place of one of the same path, expired or not, and return that. Its folder is
        the caller's to delete, or, with `discard_replaced`, thrown away when no living session samples from it."""
        same = checkpoints.c.path == values["path"]
        with self._engine.begin() as connection:
            old = connection.execute(checkpoints.select().where(same)).mappings().first()
            connection.execute(checkpoints.delete().where(same))
            connection.execute(published.delete().where(published.c.path == values["path"]))
            connection.execute(checkpoints.insert().values(**values))
            if old is not None and discard_replaced:
                connection.execute(discarded.insert().values(**discarded_row(dict(old))))
        return None if old is None else dict(old)

    def checkpoint(self, path: str) -> Row | None:
        """The checkpoint of that path, unless it has expired."""
        row = self._one(checkpoints, checkpoints.c.path == path)
        return None if row is None or (row["expires"] or float("inf")) <= self.clock() else row

    def add_sampled_sequences(self, rows: Sequence[Row], now: float) -> None:
        """Write them, and drop those that have expired."""
        with self._engine.begin() as connection:
            connection.execute(sampled_sequences.delete().where(sampled_sequences.c.expires <= now))
            connection.execute(sampled_sequences.insert(), rows)

    def sampled_sequences(self, sequence_ids: Iterable[str]) -> list[Row]:
        """Those that are here, expired or not."""
        found = [self._many(sampled_sequences, same) for same in _one_of(sampled_sequences.c.sequence_id, sequence_ids)]
        return [row for rows in found for row in rows]

    def keep_sampled_sequences(self, sequence_ids: Iterable[str], expires: float) -> None:
        with self._engine.begin() as connection:
            for same in _one_of(sampled_sequences.c.sequence_id, sequence_ids):
                connection.execute(sampled_sequences.update().where(same).values(expires=expires))

    def put_document(self, kind: str, document_id: str, body: Mapping[str, Any]) -> None:
        """Write what only one part of the service reads, in place of an older one of the same id."""
        same = (documents.c.kind == kind) & (documents.c.document_id == document_id)
        values = {"kind": kind, "document_id": document_id, "body": dict(body)}
        with self._engine.begin() as connection:
            if not connection.execute(documents.update().where(same).values(body=dict(body))).rowcount:
                connection.execute(documents.insert().values(created=self.clock(), **values))

    def documents(self, kind: str) -> list[Row]:
        """Those of a kind, newest first."""
        newest_first = (documents.c.created.desc(), documents.c.document_id)
        query = documents.select().where(documents.c.kind == kind).order_by(*newest_first)
        with self._engine.connect() as connection:
            return [dict(row) for row in connection.execute(query).mappings()]

    def delete_document(self, kind: str, document_id: str) -> None:
        same = (documents.c.kind == kind) & (documents.c.document_id == document_id)
        with self._engine.begin() as connection:
            connection.execute(documents.delete().where(same))

    def close(self) -> None:
        self._engine.dispose()

    def _insert(self, table: sa.Table, **values: Any) -> None:
        with self._engine.begin() as connection:
            connection.execute(table.insert().values(**values))

    def _one(self, table: sa.Table, condition: sa.ColumnElement[bool]) -> Row | None:
        found = self._many(table, condition)
        return found[0] if found else None

    def _many(self, table: sa.Table, condition: sa.ColumnElement[bool]) -> list[Row]:
        with self._engine.connect() as connection:
            return [dict(row) for row in connection.execute(table.select().where(condition)).mappings()]


def discarded_row(checkpoint: Row) -> Row:
    """For a checkpoint that nobody can load any more. A sampler knows its adapter by path and time."""
    adapter_id = f"{checkpoint['path']}@{checkpoint['created']}"
    return {"folder": checkpoint["folder"], "base_model": checkpoint["base_model"], "adapter_id": adapter_id}


def _one_of(column: "sa.Column[Any]", values: Iterable[str]) -> Iterator[sa.ColumnElement[bool]]:
    """Conditions that together find every value: a statement takes only so many parameters."""
    several = sorted(values)
    for start in range(0, len(several), 500):
        yield column.in_(several[start : start + 500])


def _tune_sqlite(connection: Any, _: Any) -> None:
    """Write-ahead log: readers never wait, and a commit survives the process; FULL: and a power cut."""
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA busy_timeout=10000")
    cursor.close()
