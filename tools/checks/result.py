"""What a check finds, a row each."""

import math
from typing import NamedTuple


class Row(NamedTuple):
    """One thing that was looked at: what came, and what it should be.

    With `limit`, more than it is a failure. `expected` is the planner's estimate, which a measured
    figure may miss; a row with neither only tells.
    """

    what: str
    got: float | str
    unit: str = ""
    limit: float | None = None
    expected: float | None = None
    note: str = ""

    @property
    def failed(self) -> bool:
        """A limit that is not kept; a NaN keeps none."""
        return self.limit is not None and not (
            isinstance(self.got, (int, float)) and self.got <= self.limit
        )

    @property
    def ratio(self) -> float | None:
        """Measured over estimated."""
        if self.expected is None or isinstance(self.got, str) or not self.expected:
            return None
        return self.got / self.expected

    @property
    def distance(self) -> float:
        """How far the estimate is off, either way; 0 where there is none."""
        ratio = self.ratio
        return abs(math.log(ratio)) if ratio else 0.0


class Section(NamedTuple):
    """The rows of one part of the check; `trouble` is why there are no more."""

    name: str
    seconds: float
    rows: tuple[Row, ...] = ()
    trouble: str = ""

    @property
    def failed(self) -> bool:
        return bool(self.trouble) or any(row.failed for row in self.rows)
