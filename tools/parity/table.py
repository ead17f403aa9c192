"""The table that verify_parity.py prints."""

from typing import NamedTuple

WIDTH = 48  # of a tensor's name


class Row(NamedTuple):
    """One line of the table."""

    tensor: str
    error: float
    limit: float
    note: str = ""

    @property
    def verdict(self) -> str:
        return "ok" if self.error <= self.limit else "FAIL"  # a NaN is not within any limit

    def __str__(self) -> str:
        numbers = f"{self.error:8.1e} {self.limit:8.1e}"
        return f"{self.tensor:{WIDTH}} {numbers}  {self.verdict:5} {self.note}".rstrip()
