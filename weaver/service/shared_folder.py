"""Several processes may use one data directory: a server and programs, or workers of one program."""

import fcntl
from pathlib import Path
from typing import Final

LOCK_FILE: Final = "users.lock"


class Tenancy:
    """This process uses the directory until it closes this or ends, however it ends."""

    def __init__(self, data_dir: Path) -> None:
        self._file = (data_dir / LOCK_FILE).open("a")
        fcntl.flock(self._file, fcntl.LOCK_SH)

    def is_alone(self) -> bool:
        """Whether no other process uses it just now. What others left behind is then nobody's."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            alone = False
        else:
            alone = True
        fcntl.flock(self._file, fcntl.LOCK_SH)  # also when the other one failed: that may have let go of this one
        return alone

    def close(self) -> None:
        self._file.close()
