"""PyAV, where it is installed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rpiae.core.errors import MissingExtraError

if TYPE_CHECKING:
    import av

#: Containers that are opened. FFmpeg's others are no videos, and some of them name further files.
CONTAINERS = (
    "asf", "avi", "flv", "gif", "h264", "hevc", "ivf", "m4v", "matroska", "mov", "mpeg", "mpegts",
    "mpegvideo", "mxf", "ogg", "yuv4mpegpipe",
)  # fmt: skip


def pyav() -> Any:
    """The module ``av``.

    Raises:
        MissingExtraError: if it is not installed.
    """
    try:
        import av
    except ImportError:
        raise MissingExtraError(
            'videos need av, which is not installed: pip install "rpiae[video]"'
        ) from None
    return av


def demuxed(file: Any) -> av.container.InputContainer:
    """The container that a binary file is, which must be one of ``CONTAINERS``.

    Raises:
        av.FFmpegError, OSError, ValueError: if it is damaged, or is none.
    """
    opened: av.container.InputContainer = pyav().open(
        file,
        container_options={"format_whitelist": ",".join(CONTAINERS)},
        metadata_errors="replace",
    )
    return opened


def packets(container: av.container.InputContainer, stream: av.stream.Stream) -> Iterator[Any]:
    """The packets of a stream, from where the container stands; the last one is empty.

    Raises:
        av.FFmpegError, OSError: where reading stops before the end.
    """
    # Where a stream turns up in the middle of a file, PyAV stumbles over it at the end.
    with contextlib.suppress(IndexError):
        yield from container.demux(stream)
