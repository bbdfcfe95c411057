"""From decoded frames to what a viewer sees: progressive, square pixels, upright, 8-bit RGB."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from rpiae.core.errors import DataError
from rpiae.data.images import Pixels
from rpiae.data.video.library import pyav

if TYPE_CHECKING:
    import av

#: Most that a pixel may be wider than high, or higher than wide; what says more is damaged.
MOST_ASPECT = 4


def rendered(frame: av.VideoFrame, *, aspect: Fraction) -> Pixels:
    """A decoded frame as it is shown.

    Interlaced frames are deinterlaced one by one: the lines of one field stay, and those of the
    other are interpolated along edges (FFmpeg's ``estdif``). Pixels that are not square are made so
    by enlarging the shorter side. Colours are converted by the matrix and range that the frame names;
    a frame that names none is BT.601 of limited range, FFmpeg's rule. Transfer functions are left as
    they are: HDR is not mapped to SDR. Transparent parts become white. Turned and mirrored videos are
    set upright by their display matrix.

    Args:
        frame: of any pixel format.
        aspect: width over height of a pixel.

    Returns:
        (h, w, 3)

    Raises:
        DataError: if the pixels' shape is no sensible one, or it is turned by less than a quarter.
    """
    if frame.interlaced_frame:
        frame = _deinterlaced(frame)
    width, height = _square(frame.width, frame.height, aspect)
    reformatter = pyav().video.reformatter
    interpolation = reformatter.Interpolation
    transparent = any(component.is_alpha for component in frame.format.components)
    # Without these two flags, colours are off by up to three levels.
    exact = interpolation.FULL_CHR_H_INT | interpolation.ACCURATE_RND
    resized = (width, height) != (frame.width, frame.height)
    pixels = frame.reformat(
        width=width,
        height=height,
        format="rgba" if transparent else "rgb24",
        dst_color_range=reformatter.ColorRange.JPEG,
        interpolation=exact | (interpolation.BICUBIC if resized else interpolation.BILINEAR),
        threads=1,
    ).to_ndarray()
    if transparent:
        pixels = _on_white(pixels)
    return _upright(pixels.astype(np.uint8, copy=False), _display_matrix(frame))


def _deinterlaced(frame: av.VideoFrame) -> av.VideoFrame:
    """One frame out of two fields; of that frame alone, so that a seek cannot change it."""
    graph = pyav().filter.Graph()
    source = graph.add_buffer(
        width=frame.width,
        height=frame.height,
        format=frame.format,
        time_base=frame.time_base or Fraction(1, 1000),
    )
    graph.link_nodes(source, graph.add("estdif", "mode=frame"), graph.add("buffersink")).configure()
    graph.vpush(frame)
    graph.vpush(None)
    made: av.VideoFrame = graph.vpull()
    made.colorspace, made.color_range = frame.colorspace, frame.color_range
    return made


def _square(width: int, height: int, aspect: Fraction) -> tuple[int, int]:
    if not Fraction(1, MOST_ASPECT) <= aspect <= MOST_ASPECT:
        raise DataError(
            f"its pixels would be {float(aspect):.3g} times as wide as high; up to {MOST_ASPECT} times "
            "either way is read"
        )
    if aspect >= 1:
        return round(width * aspect), height
    return width, round(height / aspect)


def _on_white(pixels: Any) -> Pixels:
    alpha = pixels[..., 3:].astype(np.uint16)
    blended: Pixels = ((pixels[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(
        np.uint8
    )
    return blended


def _display_matrix(frame: av.VideoFrame) -> tuple[int, int, int, int]:
    """Signs of the matrix (a b; c d) that takes x and y of the stored pixel to x·a + y·c and
    x·b + y·d of the shown one.

    Raises:
        DataError: if it does more than turn by quarters and mirror.
    """
    found: Any = frame.side_data.get(pyav().sidedata.sidedata.Type.DISPLAYMATRIX)
    if found is None:
        return 1, 0, 0, 1
    a, b, _, c, d, *_ = np.sign(np.frombuffer(bytes(found), dtype=np.int32)).tolist()
    if not (a and d and not b and not c) and not (b and c and not a and not d):
        raise DataError("it is turned by an angle that is no multiple of 90°; save it upright")
    return a, b, c, d


def _upright(pixels: Pixels, matrix: tuple[int, int, int, int]) -> Pixels:
    a, b, c, d = matrix
    if b:
        pixels, a, d = pixels.transpose(1, 0, 2), c, b
    return np.ascontiguousarray(pixels[::d, ::a])
