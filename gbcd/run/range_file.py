"""An object of a bucket as a read-only file, of which only the ranges that are asked for travel."""

from __future__ import annotations

import io
import os
from collections.abc import Callable

from typing_extensions import Buffer


class RangeFile(io.RawIOBase):
    """Reads through a function of start and length."""

    def __init__(self, size: int, fetch: Callable[[int, int], bytes]) -> None:
        """Start at the beginning; nothing is fetched yet."""
        self._size, self._fetch, self._position = size, fetch, 0

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """Present position, in bytes from the beginning."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Move to `offset` from the beginning, the present position or the end."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Buffer, /) -> int:
        """Fill `buffer` as far as the object goes; returns the number of bytes."""
        view = memoryview(buffer)
        length = max(0, min(len(view), self._size - self._position))
        if length:
            view[:length] = self._fetch(self._position, length)
            self._position += length
        return length
