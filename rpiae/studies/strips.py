"""The strips of held-out images that a report shows, as part of its page."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from attrs import evolve, frozen
from PIL import Image, UnidentifiedImageError

from rpiae.studies.results import DONE, StudyResults

#: Bytes of pictures that a page takes as they are; beyond, they are made smaller, which is said.
PICTURE_BYTES = 1_500_000
SMALLER_WIDTH = 960
SMALLER_QUALITY = 85
#: Small pictures are shown at twice their size as long as they are no wider than this, in pixels.
SHOWN_WIDTH = 900


@frozen(kw_only=True)
class Picture:
    """A picture as it is stored, its size in pixels."""

    content: bytes
    kind: str
    width: int
    height: int


@frozen(kw_only=True)
class Strip:
    """A strip of images.

    Attributes:
        label: whose.
        original: whether it holds the originals, not what a row makes of them.
        picture: the strip, if there is one.
        problem: what is wrong with it; empty too where there is none.
    """

    label: str
    original: bool = False
    picture: Picture | None = None
    problem: str = ""

    @property
    def what(self) -> str:
        """The picture in words."""
        return "The held-out originals" if self.original else f"Reconstructions by {self.label}"

    @property
    def uri(self) -> str:
        """The picture as a data URI; empty where there is none."""
        if self.picture is None:
            return ""
        content = base64.b64encode(self.picture.content).decode()
        return f"data:image/{self.picture.kind};base64,{content}"

    @property
    def shown_size(self) -> tuple[int, int]:
        """Width and height on the page, in pixels; zero where there is no picture."""
        if self.picture is None:
            return 0, 0
        times = 2 if self.picture.width * 2 <= SHOWN_WIDTH else 1
        return self.picture.width * times, self.picture.height * times


@frozen(kw_only=True)
class Strips:
    """All strips of a page, the originals first.

    Attributes:
        strips: one for each row; empty if no row has any.
        smaller: whether they are smaller here than they are stored.
    """

    strips: tuple[Strip, ...]
    smaller: bool = False


def read_strips(results: StudyResults) -> Strips:
    """The same held-out images of every row: what the first seed that has any makes of them."""
    strips = []
    if results.originals.is_file():
        strips.append(_read(Strip(label="originals", original=True), results.originals))
    for row in results.rows:
        run = row.first(run for run in row.runs if run.state == DONE and run.pictures.is_file())
        if run is None:
            strips.append(Strip(label=row.name))
        else:
            strips.append(_read(Strip(label=row.label(run)), run.pictures))
    if not any(strip.picture or strip.problem for strip in strips):
        return Strips(strips=())
    pictures = [strip.picture for strip in strips if strip.picture is not None]
    smaller = sum(len(picture.content) for picture in pictures) > PICTURE_BYTES
    if smaller:
        strips = [
            evolve(strip, picture=_smaller(strip.picture)) if strip.picture else strip
            for strip in strips
        ]
    return Strips(strips=tuple(strips), smaller=smaller)


def _read(strip: Strip, path: Path) -> Strip:
    """The strip with the picture in a file, or with what is wrong with that."""
    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content), formats=("PNG", "JPEG")) as image:
            image.load()
            kind = (image.format or "").lower()
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError):
        return evolve(strip, problem=f"{path.name} is damaged")
    picture = Picture(content=content, kind=kind, width=image.width, height=image.height)
    return evolve(strip, picture=picture)


def _smaller(picture: Picture) -> Picture:
    with Image.open(io.BytesIO(picture.content)) as image:
        small = image.convert("RGB")
    if small.width > SMALLER_WIDTH:
        height = max(1, round(small.height * SMALLER_WIDTH / small.width))
        small = small.resize((SMALLER_WIDTH, height), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    small.save(file, "JPEG", quality=SMALLER_QUALITY, optimize=True)
    return Picture(content=file.getvalue(), kind="jpeg", width=small.width, height=small.height)
