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


@frozen(kw_only=True)
class Strip:
    """A strip of images.

    Attributes:
        label: whose it is.
        original: whether it holds the originals, not what a row makes of them.
        content: of the file; empty where there is none, or a damaged one.
        kind: ``png`` or ``jpeg``.
        size: width and height, in pixels.
        problem: why there is no content.
    """

    label: str
    original: bool = False
    content: bytes = b""
    kind: str = ""
    size: tuple[int, int] = (0, 0)
    problem: str = ""

    @property
    def uri(self) -> str:
        """The picture as a data URI."""
        return f"data:image/{self.kind};base64,{base64.b64encode(self.content).decode()}"


def read_strips(results: StudyResults) -> tuple[list[Strip], bool]:
    """The same held-out images of every row: what the first seed that has any makes of them.

    Returns:
        The originals and a strip for each row, or none if no row has any; and whether they are
        smaller than they are stored.
    """
    strips = []
    if results.originals.is_file():
        strips.append(_read(Strip(label="originals", original=True), results.originals))
    for row in results.rows:
        run = row.first(run for run in row.runs if run.state == DONE and run.pictures.is_file())
        if run is None:
            strips.append(Strip(label=row.name, problem="no pictures"))
        else:
            strips.append(_read(Strip(label=row.label(run)), run.pictures))
    if all(strip.problem == "no pictures" for strip in strips):
        return [], False
    smaller = sum(len(strip.content) for strip in strips) > PICTURE_BYTES
    return [_smaller(strip) if smaller and strip.content else strip for strip in strips], smaller


def _read(strip: Strip, path: Path) -> Strip:
    """The strip with the picture in a file, or with what is wrong with that."""
    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content), formats=("PNG", "JPEG")) as image:
            image.load()
            return evolve(
                strip, content=content, kind=(image.format or "").lower(), size=image.size
            )
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError):
        return evolve(strip, problem=f"{path.name} is damaged")


def _smaller(strip: Strip) -> Strip:
    with Image.open(io.BytesIO(strip.content)) as image:
        small = image.convert("RGB")
    if small.width > SMALLER_WIDTH:
        height = max(1, round(small.height * SMALLER_WIDTH / small.width))
        small = small.resize((SMALLER_WIDTH, height), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    small.save(file, "JPEG", quality=SMALLER_QUALITY, optimize=True)
    return evolve(strip, content=file.getvalue(), kind="jpeg", size=small.size)
