"""Small videos for tests, made with PyAV."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

BT709, LIMITED, FULL = 1, 1, 2


def moving(count: int, height: int = 48, width: int = 64, *, seed: int = 0) -> NDArray[np.uint8]:
    """Frames (count, h, w, 3) of blocks that move to the right over a still ground."""
    rng = np.random.default_rng(seed)
    ground = rng.integers(40, 216, (-(-height // 8), -(-width // 8), 3), dtype=np.uint8)
    frames = np.repeat(
        np.kron(ground, np.ones((8, 8, 1), np.uint8))[None, :height, :width], count, 0
    )
    for number in range(count):
        left = (3 * number) % (width - 8)
        frames[number, 8:16, left : left + 8] = (250, 20 + number % 200, 30)
    return frames


def write(
    path: Path,
    frames: Sequence[NDArray[np.uint8]] | NDArray[np.uint8],
    *,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    rate: int = 25,
    times: Sequence[int] | None = None,
    unit: Fraction | None = None,
    matrix: int | None = BT709,
    colour_range: int | None = LIMITED,
    options: dict[str, str] | None = None,
    container: dict[str, str] | None = None,
    sound: bool = False,
    setup: Callable[[Any], None] = lambda stream: None,
) -> Path:
    """A video of RGB frames; their times in steps of ``unit`` where they are not one after another."""
    with av.open(str(path), "w", options=container or {}) as file:
        stream: Any = file.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width, stream.pix_fmt = (*frames[0].shape[:2], pixels)
        if unit is not None:
            stream.codec_context.time_base = unit
        if matrix is not None:
            stream.codec_context.colorspace = matrix
        if colour_range is not None:
            stream.codec_context.color_range = colour_range
        setup(stream)
        audio: Any = file.add_stream("aac", rate=16000) if sound else None
        if audio is not None:
            audio.layout = "mono"
            for block in range(int(len(frames) / rate * 16000 / 1024)):
                wave = np.sin(np.arange(1024) * 0.1 + block).astype(np.float32)[None]
                heard = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
                heard.sample_rate, heard.pts = 16000, block * 1024
                file.mux(audio.encode(heard))
            file.mux(audio.encode())
        for number, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame = frame.reformat(
                format=pixels, dst_colorspace=matrix, dst_color_range=colour_range
            )
            frame.pts = number if times is None else times[number]
            frame.time_base = unit or Fraction(1, rate)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path
