"""Rows that outlive the process: sessions, models, samplers and checkpoints. SQLite by default, PostgreSQL by URL.

Weights lie in folders (`weaver.checkpoints`); a row is written only after its folder is complete.
"""

import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.pool import StaticPool

from weaver.types import LoraSpec

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
)

Row = Mapping[str, Any]


class Store:
    """The database. Every method is one short transaction and may be called from any thread."""

    def __init__(self, url: str) -> None:
        options: dict[str, Any] = {}
        if url == "sqlite://":
            options = {"poolclass": StaticPool, "connect_args": {"check_same_thread": False}}
        self._engine = sa.create_engine(url, **options)
        if self._engine.dialect.name == "sqlite":
            sa.event.listen(self._engine, "connect", _tune_sqlite)
        metadata.create_all(self._engine)

    @classmethod
    def in_folder(cls, folder: Path) -> "Store":
        """The SQLite database of a data directory."""
        folder.mkdir(parents=True, exist_ok=True)
        return cls(f"sqlite:///{folder / 'weaver.sqlite'}")

    def add_session(self, session_id: str, details: Mapping[str, Any]) -> None:
        self._insert(sessions, session_id=session_id, created=time.time(), details=dict(details))

    def end_session(self, session_id: str, reason: str) -> None:
        with self._engine.begin() as connection:
            connection.execute(sessions.update().where(sessions.c.session_id == session_id).values(ended=reason))

    def session(self, session_id: str) -> Row | None:
        return self._one(sessions, sessions.c.session_id == session_id)

    def add_model(
        self, model_id: str, session_id: str, base_model: str, lora: LoraSpec, user_metadata: Mapping[str, str]
    ) -> None:
        """Write a model's row, in the place of one that a server left which died before it could acknowledge it."""
        values = {
            "model_id": model_id,
            "session_id": session_id,
            "base_model": base_model,
            "lora": asdict(lora),
            "created": time.time(),
            "user_metadata": dict(user_metadata),
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

    def samplers_of(self, session_id: str) -> list[Row]:
        return self._many(samplers, samplers.c.session_id == session_id)

    def put_checkpoint(self, **values: Any) -> Row | None:
        """Write a checkpoint's row in the place of one of the same path, expired or not, and return that."""
        same = checkpoints.c.path == values["path"]
        with self._engine.begin() as connection:
            old = connection.execute(checkpoints.select().where(same)).mappings().first()
            connection.execute(checkpoints.delete().where(same))
            connection.execute(checkpoints.insert().values(**values))
        return None if old is None else dict(old)

    def checkpoint(self, path: str) -> Row | None:
        """The checkpoint of that path, unless it has expired."""
        row = self._one(checkpoints, checkpoints.c.path == path)
        return None if row is None or (row["expires"] or float("inf")) <= time.time() else row

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


def _tune_sqlite(connection: Any, _: Any) -> None:
    """Write-ahead log: readers never wait, and a commit survives the process; FULL: and a power cut."""
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA busy_timeout=10000")
    cursor.close()
