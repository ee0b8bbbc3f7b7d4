"""How long a worker may be silent before it is taken to hang and is replaced.

A worker that hangs without dying (stopped, stuck in a system call or in a GPU driver) reports nothing. How long a batch
takes is not known beforehand, so it is measured: the limit is many times the longest silence that ended in progress,
and never below a floor. Until there was any progress the limit is a day. A worker that is wrongly replaced costs only
time: whichever attempt commits first counts.
"""

from __future__ import annotations

from gbcd.printing import duration

#: Seconds of silence that are always allowed.
FLOOR = 600.0

#: How many times the longest silence so far another may last.
FACTOR = 20.0

#: Seconds of silence that are allowed before any worker has made progress.
UNMEASURED = 24 * 3600.0


class Timeout:
    """The limit, as it follows from what was seen so far."""

    def __init__(self) -> None:
        """Nothing is measured yet."""
        self._longest: float | None = None

    def progressed(self, silence: float) -> None:
        """Take in that a worker made progress after `silence` seconds."""
        self._longest = max(self._longest or 0.0, silence)

    @property
    def limit(self) -> float:
        """Seconds of silence after which a worker is replaced."""
        return UNMEASURED if self._longest is None else max(FLOOR, FACTOR * self._longest)

    def exceeded(self, silence: float) -> str | None:
        """Why a worker that has been silent for `silence` seconds is replaced; None as long as it is not."""
        if silence <= self.limit:
            return None
        return f"it made no progress for {duration(silence)}; the limit in this run is {duration(self.limit)}"
