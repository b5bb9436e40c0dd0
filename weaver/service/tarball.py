"""A checkpoint as one file: an uncompressed tar, written while it is sent. Trained numbers do not compress."""

import io
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, Final

COMPLETE: Final = "checkpoint_complete"
"""An empty file beside those of the checkpoint: Tinker's command line looks for it."""

_PIECE: Final = 2**20


class Tarball:
    """Files that are open until they have been sent: a checkpoint deleted meanwhile is sent whole all the same."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        with ExitStack() as opened:
            self._files = [(name, opened.enter_context(path.open("rb"))) for name, path in sorted(files.items())]
            self._close = opened.pop_all().close
        self._headers = [_header(name, file) for name, file in self._files]
        self._end = tarfile.NUL * (2 * tarfile.BLOCKSIZE)
        self.size = sum(map(_padded_size, self._headers)) + tarfile.BLOCKSIZE + len(self._end)

    def pieces(self) -> Iterator[bytes]:
        """All of it, once."""
        try:
            for (_, file), header in zip(self._files, self._headers, strict=True):
                yield header.tobuf(tarfile.GNU_FORMAT)
                while piece := file.read(_PIECE):
                    yield piece
                yield tarfile.NUL * (_padded_size(header) - tarfile.BLOCKSIZE - header.size)
            yield tarfile.TarInfo(COMPLETE).tobuf(tarfile.GNU_FORMAT)
            yield self._end
        finally:
            self._close()


def _header(name: str, file: BinaryIO) -> tarfile.TarInfo:
    header = tarfile.TarInfo(name)
    header.size = file.seek(0, io.SEEK_END)
    file.seek(0)
    return header


def _padded_size(header: tarfile.TarInfo) -> int:
    """What a file takes in the tar: its header, and its bytes in whole blocks."""
    return tarfile.BLOCKSIZE * (1 - -header.size // tarfile.BLOCKSIZE)
