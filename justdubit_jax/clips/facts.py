"""What was decided about a clip while it was read, and what is odd about it: plain values."""

import dataclasses
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

LARGE_CROP = 0.1  # of a side; from here on a crop is a finding


class Finding(NamedTuple):
    """Something about a file that a person should know; the clip can be used nevertheless."""

    path: Path
    kind: str  # one word, for counting and for tests
    text: str

    def __str__(self) -> str:
        return f"{self.path}: {self.text}"


@dataclasses.dataclass(frozen=True)
class ClipFacts:
    """How a clip's pictures were taken: one track, one rate, upright, square pixels, BT.709."""

    frames: int  # that were read
    track: str  # number, of how many, codec
    width: int  # as stored
    height: int
    pixel_aspect: Fraction  # of a stored pixel, width / height
    turned: int  # degrees counterclockwise, 0 to 270
    mirrored: bool  # left and right, before it is turned
    deinterlaced: bool
    colour: str
    own_rate: Fraction  # by the frames' time stamps
    rate: Fraction  # of what was taken
    variable: bool  # a frame that was used is off by more than half a frame
    resampled: bool  # in time
    shown: tuple[int, int]  # width, height upright with square pixels
    size: tuple[int, int]  # width, height of what was taken

    @property
    def crop(self) -> tuple[str, float]:
        """The side that was cut and the share of it that was lost, 0 where nothing was."""
        (x, y), (width, height) = self.shown, self.size
        kept = (x / y) / (width / height)
        return ("height", 1 - kept) if kept < 1 else ("width", 1 - 1 / kept)

    def look_notes(self) -> list[str]:
        """In words, what was done to every picture."""
        notes = []
        if self.deinterlaced:
            notes.append("deinterlaced")
        if self.pixel_aspect != 1:
            (x, y), aspect = self.shown, self.pixel_aspect
            notes.append(
                f"its pixels are {aspect.numerator}:{aspect.denominator}: shown as {x}x{y}"
            )
        if self.mirrored:
            notes.append("mirrored")
        if self.turned:
            notes.append(f"turned by {self.turned} degrees counterclockwise")
        if "->" in self.colour:
            notes.append(f"colours converted: {self.colour}")
        return notes + self._size_notes()

    def rate_notes(self) -> list[str]:
        """In words, what was done to the rate."""
        own, rate = float(self.own_rate), float(self.rate)
        if self.variable:
            return [f"resampled from a variable frame rate to {rate:g} fps"]
        return [f"resampled {own:g} -> {rate:g} fps"] if self.resampled else []

    def metadata(self) -> dict[str, str]:
        """For a file that is made of the clip."""
        side, lost = self.crop
        return {
            "frames": str(self.frames),
            "track": self.track,
            "stored": f"{self.width}x{self.height}",
            "shown": "{}x{}".format(*self.shown),
            "pixel_aspect": f"{self.pixel_aspect.numerator}:{self.pixel_aspect.denominator}",
            "turned": str(self.turned),
            "mirrored": "yes" if self.mirrored else "no",
            "deinterlaced": "yes" if self.deinterlaced else "no",
            "colour": self.colour,
            "own_rate": f"{self.own_rate.numerator}/{self.own_rate.denominator}",
            "rate": f"{self.rate.numerator}/{self.rate.denominator}",
            "variable": "yes" if self.variable else "no",
            "resampled": "yes" if self.resampled else "no",
            "cropped": f"{100 * lost:.1f} % of its {side}",
        }

    def _size_notes(self) -> list[str]:
        (x, y), (width, height) = self.shown, self.size
        side, lost = self.crop
        resized, cropped = max(height / y, width / x) != 1, lost > 0.0005
        if not (resized or cropped):
            return []
        verb = " and ".join(["resized"] * resized + ["cropped"] * cropped)
        loss = f", losing {100 * lost:.1f} % of its {side}" if cropped else ""
        return [f"{verb} {x}x{y} -> {width}x{height}{loss}"]
