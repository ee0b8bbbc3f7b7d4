"""How long a worker may be silent before it is taken to hang and is replaced.

A worker that hangs without dying (stopped, stuck in a system call or in a driver of its GPU) reports nothing, and no
timer of its own can be trusted to. What a shard should take is not known beforehand, so it is measured: the limit is
many times what the longest shard took that was committed in this run, and never below a floor. Until one is committed
there is no measure, and the limit is a day, longer than any shard that is worth planning, because a shard is also what
a preemption costs. A worker that is wrongly given up harms nothing but time: whichever attempt commits first counts.
"""

from __future__ import annotations

from gbcd.printing import duration
from gbcd.run.workers import Job

#: Seconds that every shard may take.
FLOOR = 600.0

#: How many times the longest committed shard another may take.
FACTOR = 20.0

#: Seconds that a shard may take before any is committed in this run.
UNMEASURED = 24 * 3600.0


class Patience:
    """The limit, as it follows from what was committed so far."""

    def __init__(self) -> None:
        """Nothing is measured yet."""
        self._longest: float | None = None
        self._largest_batch = 1

    def committed(self, job: Job, seconds: float) -> None:
        """Take in that `job` was committed `seconds` after it was begun."""
        self._longest = max(self._longest or 0.0, seconds)
        self._largest_batch = max(self._largest_batch, job.batch_size)

    def limit(self, job: Job) -> float:
        """Seconds after which the worker at `job` is given up.

        Half the batch may take twice as long, so a smaller batch than was committed has proportionally more.
        """
        if self._longest is None:
            return UNMEASURED
        return max(FLOOR, FACTOR * self._longest) * max(1.0, self._largest_batch / job.batch_size)

    def exhausted(self, job: Job, seconds: float) -> str | None:
        """Why the worker that has been at `job` for `seconds` is given up; None as long as it is not."""
        limit = self.limit(job)
        if seconds <= limit:
            return None
        measure = "nothing" if self._longest is None else f"no shard that took longer than {duration(self._longest)}"
        return (
            f"it was silent for {duration(seconds)}, over the limit of {duration(limit)} for a shard in a run that has "
            f"committed {measure}"
        )
