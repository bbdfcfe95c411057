"""Pixels of unusual image files: how they are turned, 16 bits, transparency, and very long ones."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from rpiae.core.errors import DataError
from rpiae.data import images
from rpiae.data.crops import Fitting
from rpiae.data.images import (
    Piecewise,
    bicubic,
    centre_crop,
    cover_size,
    crop,
    decode,
    shape_of,
    short_side_size,
)

ORIENTATION = 0x0112

#: Width and height of stored test images.
STORED = (30, 20)

XMP = '<x:xmpmeta><rdf:Description tiff:Orientation="{}"/></x:xmpmeta>'


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


def png(
    rows: bytes,
    width: int,
    height: int,
    bits: int,
    colour: int,
    *between: bytes,
    after: bytes = b"",
) -> bytes:
    """A PNG of unfiltered rows, with further chunks before and after the pixels."""
    size = len(rows) // height
    raw = b"".join(b"\0" + rows[i * size : (i + 1) * size] for i in range(height))
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(between)
        + chunk(b"IDAT", zlib.compress(raw)) + after + chunk(b"IEND", b"")
    )  # fmt: skip


def tiff(
    content: bytes, width: int, height: int, bits: int, photometric: int, **tags: int
) -> bytes:
    """A little-endian TIFF of one uncompressed strip of grey."""
    entries = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 277: 1, 278: height}
    entries |= {279: len(content), 273: 8} | {int(k[1:]): v for k, v in tags.items()}
    table = b"".join(struct.pack("<HHII", tag, 4, 1, entries[tag]) for tag in sorted(entries))
    padded = content + b"\0" * (len(content) % 2)
    return (
        b"II*\0" + struct.pack("<I", 8 + len(padded)) + padded
        + struct.pack("<H", len(entries)) + table + b"\0\0\0\0"
    )  # fmt: skip


def exif(orientation: int) -> Image.Exif:
    made = Image.Exif()
    made[ORIENTATION] = orientation
    return made


def plain(mode: str = "RGB") -> Image.Image:
    return Image.fromarray(noise(STORED[1], STORED[0])).convert(mode)


def _png_late(orientation: int, kind: bytes) -> bytes:
    """A PNG that says after its pixels how it is turned."""
    said = {
        b"eXIf": exif(orientation).tobytes()[6:],
        b"iTXt": b"XML:com.adobe.xmp\0\0\0\0\0" + XMP.format(orientation).encode(),
    }[kind]
    return png(noise(20, 30).tobytes(), 30, 20, 8, 2, after=chunk(kind, said))


def _png_xmp(orientation: int) -> bytes:
    said = b"XML:com.adobe.xmp\0\0\0\0\0" + XMP.format(orientation).encode()
    return png(noise(20, 30).tobytes(), 30, 20, 8, 2, chunk(b"iTXt", said))


def _png_raw_profile(orientation: int) -> bytes:
    data = exif(orientation).tobytes()
    text = f"Raw profile type exif\0\nexif\n{len(data):8}\n{data.hex()}\n"
    return png(noise(20, 30).tobytes(), 30, 20, 8, 2, chunk(b"tEXt", text.encode()))


TURNED: dict[str, Callable[[int], bytes]] = {
    "jpeg": lambda o: saved(plain(), "JPEG", exif=exif(o)),
    "jpeg, xmp": lambda o: saved(plain(), "JPEG", xmp=XMP.format(o).encode()),
    "mpo": lambda o: saved(plain(), "MPO", exif=exif(o), save_all=True, append_images=[plain()]),
    "png": lambda o: saved(plain(), "PNG", exif=exif(o)),
    "png, late exif": lambda o: _png_late(o, b"eXIf"),
    "png, late xmp": lambda o: _png_late(o, b"iTXt"),
    "png, xmp": _png_xmp,
    "png, raw profile": _png_raw_profile,
    "apng": lambda o: saved(plain(), "PNG", exif=exif(o), save_all=True, append_images=[plain("L").convert("RGB")]),
    "webp": lambda o: saved(plain(), "WEBP", exif=exif(o)),
    "webp, xmp": lambda o: saved(plain(), "WEBP", xmp=XMP.format(o).encode()),
    "avif": lambda o: saved(plain(), "AVIF", exif=exif(o)),
    "tiff": lambda o: saved(plain(), "TIFF", exif=exif(o)),
    "tiff, lzw": lambda o: saved(plain(), "TIFF", exif=exif(o), compression="tiff_lzw"),
    "tiff, jpeg": lambda o: saved(plain(), "TIFF", exif=exif(o), compression="jpeg"),
    "tiff, two pages": lambda o: saved(plain(), "TIFF", exif=exif(o), save_all=True, append_images=[plain()]),
    "tiff, xmp": lambda o: saved(plain(), "TIFF", tiffinfo={700: XMP.format(o).encode()}),
    "tiff, 16-bit grey": lambda o: tiff(
        noise(20, 30, 2).tobytes(), 30, 20, 16, 1, t274=o
    ),
    "gif": lambda _: saved(plain(), "GIF"),
    "bmp": lambda _: saved(plain(), "BMP"),
    "dib": lambda _: saved(plain(), "DIB"),
    "ppm": lambda _: saved(plain(), "PPM"),
    "pgm": lambda _: saved(plain("L"), "PPM"),
    "jp2": lambda _: saved(plain(), "JPEG2000"),
}  # fmt: skip


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", TURNED)
def test_the_header_tells_the_shape_of_the_decoded_image(
    kind: str, orientation: int, tmp_path: Path
) -> None:
    content = TURNED[kind](orientation)
    path = tmp_path / "image"
    path.write_bytes(content)
    told = decode(content).shape[:2]
    assert shape_of(content) == shape_of(path) == told == decode(path).shape[:2]
    turns = orientation >= 5 and kind not in ("gif", "bmp", "dib", "ppm", "pgm", "jp2")
    assert told == (STORED if turns else STORED[::-1])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_format_is_turned_alike(orientation: int) -> None:
    lossless = ("png", "png, late exif", "png, xmp", "tiff", "tiff, lzw", "tiff, xmp")
    first, *others = (decode(TURNED[kind](orientation)) for kind in lossless)
    assert all(np.array_equal(first, other) for other in others)


def test_a_header_is_read_without_the_pixels(tmp_path: Path) -> None:
    whole = saved(Image.fromarray(noise(200, 300)), "PNG", exif=exif(6))
    assert shape_of(whole[: len(whole) // 2]) == (300, 200)


RAMP = np.linspace(0, 65535, 64).round().astype(np.uint16)
BYTES = ((RAMP.astype(np.int64) + 128) // 257).astype(np.uint8)


@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_16_bit_grey_keeps_its_range_in_both_orders(order: str) -> None:
    image = Image.fromarray(np.tile(RAMP, (4, 1)).astype(order))
    for content in (saved(image, "TIFF"), saved(image, "TIFF", compression="tiff_lzw")):
        assert np.array_equal(decode(content)[0, :, 1], BYTES)


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_grey_whose_white_is_zero_is_inverted(bits: int) -> None:
    if bits == 12:
        values = np.linspace(0, 4095, 64).round().astype(int)
        # Pillow knows no inverted 12 bits: it is refused by name.
        packed = b"".join(
            bytes((a >> 4, (a & 15) << 4 | b >> 8, b & 255))
            for a, b in zip(values[::2], values[1::2], strict=True)
        )
        assert np.array_equal(
            decode(tiff(packed, 64, 1, 12, 1))[0, :, 0], (values * 255 + 2047) // 4095
        )
        with pytest.raises(DataError, match=r"^a\.tif: "):
            decode(tiff(packed, 64, 1, 12, 0), name="a.tif")
        return
    stored = RAMP.astype("<u2") if bits == 16 else BYTES
    black_is_zero, white_is_zero = (
        decode(tiff(stored.tobytes(), 64, 1, bits, photometric))[0, :, 0] for photometric in (1, 0)
    )
    assert np.array_equal(black_is_zero, BYTES)
    assert np.array_equal(white_is_zero, BYTES[::-1])


def test_pixels_without_a_defined_white_are_refused() -> None:
    signed = tiff(RAMP.astype("<u2").tobytes(), 64, 1, 16, 1, t339=2)
    for content, reason in (
        (signed, "signed 16-bit"),
        (saved(Image.new("I", (2, 2), -1), "TIFF"), "32-bit"),
        (saved(Image.new("I", (2, 2), 70_000), "TIFF"), "32-bit"),
        (saved(Image.new("F", (2, 2), 0.5), "TIFF"), "floating-point"),
    ):
        with pytest.raises(DataError, match=rf"^a\.tif: {reason} pixels have no defined white"):
            decode(content, name="a.tif")


def test_grey_of_netpbm_scales_with_its_greatest_value() -> None:
    assert decode(b"P5 2 1 1023\n" + struct.pack(">HH", 0, 1023))[0, :, 0].tolist() == [0, 255]
    assert decode(b"P5 2 1 65535\n" + struct.pack(">HH", 257, 65535))[0, :, 0].tolist() == [1, 255]


def transparency(*levels: int) -> bytes:
    return chunk(b"tRNS", struct.pack(f">{len(levels)}H", *levels))


def test_a_transparent_grey_is_white() -> None:
    deep = png(RAMP.astype(">u2").tobytes(), 64, 1, 16, 0, transparency(int(RAMP[5])))
    expected = BYTES.copy()
    expected[5] = 255
    assert np.array_equal(decode(deep)[0, :, 0], expected)
    four = png(bytes((0x01, 0x23)), 4, 1, 4, 0, transparency(2))
    assert decode(four)[0, :, 0].tolist() == [0, 17, 255, 51]
    two = png(bytes((0b00011011,)), 4, 1, 2, 0, transparency(0))
    assert decode(two)[0, :, 0].tolist() == [255, 85, 170, 255]
    one = png(bytes((0b01010000,)), 4, 1, 1, 0, transparency(0))
    assert decode(one)[0, :, 0].tolist() == [255] * 4


def test_transparent_colours_are_white() -> None:
    rgb = png(bytes((1, 2, 3, 4, 5, 6)), 2, 1, 8, 2, transparency(1, 2, 3))
    assert decode(rgb)[0].tolist() == [[255] * 3, [4, 5, 6]]
    palette = chunk(b"PLTE", bytes((9, 9, 9, 50, 60, 70, 0, 0, 0)))
    indexed = png(bytes((0, 1, 2)), 3, 1, 8, 3, palette, chunk(b"tRNS", bytes((0, 255, 128))))
    assert decode(indexed)[0].tolist() == [[255] * 3, [50, 60, 70], [127] * 3]
    deep = struct.pack(">12H", *(257 * v for v in (10, 20, 30, 0, 40, 50, 60, 255, 0, 0, 0, 255)))
    assert decode(png(deep, 3, 1, 16, 6))[0].tolist() == [[255] * 3, [40, 50, 60], [0] * 3]
    grey = struct.pack(">4H", 0, 0, 257 * 7, 65535)
    assert decode(png(grey, 2, 1, 16, 4))[0].tolist() == [[255] * 3, [7] * 3]


def test_a_transparent_colour_of_16_bits_is_refused() -> None:
    deep = struct.pack(">3H", 1000, 1001, 1002)
    assert decode(png(deep, 1, 1, 16, 2)).tolist() == [[[3, 3, 3]]]
    with pytest.raises(DataError, match=r"^a\.png: a transparent colour of 16 bits"):
        decode(png(deep, 1, 1, 16, 2, transparency(1000, 1001, 1002)), name="a.png")


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "AVIF", "TIFF"])
def test_of_an_animation_the_first_frame_is_taken(kind: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("white", "black")]
    content = saved(frames[0], kind, save_all=True, append_images=frames[1:])
    assert decode(content).min() > 250


def old_decode(content: bytes) -> np.ndarray[Any, Any]:
    """As images were decoded before they were converted in strips."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    assert image is not None
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_ordinary_images_are_what_they_were(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    image = Image.merge("RGBA", [Image.fromarray(c) for c in noise(90, 70, 4).transpose(2, 0, 1)])
    image = (image if mode in ("LA", "RGBA") else image.convert("RGB")).convert(mode)
    content = saved(image, "TIFF" if mode in ("CMYK", "YCbCr") else "PNG")
    for strip in (images.STRIP, 1000):
        monkeypatch.setattr(images, "STRIP", strip)
        assert np.array_equal(decode(content), old_decode(content))
    decoded = decode(content)
    resized = Fitting(image_size=32, resize=40).fitted(content, "a")
    shrunk = Fitting(image_size=32, resize=None).fitted(content, "a")
    covered = Fitting(image_size=32, resize=None).fitted(content, "a", (24, 48))
    shape = decoded.shape[:2]
    for found, size in (
        (resized, short_side_size(shape, 40)), (shrunk, short_side_size(shape, 48)),
        (covered, cover_size(shape, (24, 48))),
    ):  # fmt: skip
        assert np.array_equal(found, bicubic(Image.fromarray(decoded), size))


#: Levels by which the order of a resize's two rounded passes may change it, where none clips.
ROUNDING = 2


@given(
    width=st.integers(1, 60), height=st.integers(1, 60), side=st.integers(1, 70),
    share=st.floats(0.1, 1), top=st.floats(0, 1), left=st.floats(0, 1),
)  # fmt: skip
def test_a_crop_of_pieces_is_the_crop_of_the_whole(
    width: int, height: int, side: int, share: float, top: float, left: float
) -> None:
    pixels = noise(height, width) // 4 + 96
    whole = bicubic(Image.fromarray(pixels), short_side_size((height, width), side))
    pieces = Piecewise(Image.fromarray(pixels), whole.shape[:2])
    assert pieces.shape == whole.shape
    shape = (max(1, round(share * whole.shape[0])), max(1, round(share * whole.shape[1])))
    ours, theirs = (crop(p, shape, top, left).astype(int) for p in (pieces, whole))
    assert np.abs(ours - theirs).max() <= ROUNDING
    ours, theirs = (centre_crop(p, *shape).astype(int) for p in (pieces, whole))
    assert np.abs(ours - theirs).max() <= ROUNDING


@pytest.mark.parametrize("size", [(1_000_000, 1), (1, 1_000_000), (65_000, 2)])
def test_of_a_thin_image_the_crop_alone_is_computed(size: tuple[int, int]) -> None:
    content = saved(Image.new("RGB", size, (10, 200, 30)), "PNG")
    fitting = Fitting(image_size=32, resize=256)
    picture = fitting.fitted(content, "thin.png")
    assert min(picture.shape[:2]) == 256
    assert max(picture.shape[:2]) > 8_000_000
    for part in (crop(picture, (32, 32), 0.3, 0.9), centre_crop(picture, 32, 32)):
        assert part.shape == (32, 32, 3)
        assert np.array_equal(np.unique(part.reshape(-1, 3), axis=0), [[10, 200, 30]])
    covered = fitting.fitted(content, "thin.png", (512, 256), enlarge=True)
    assert isinstance(covered, Piecewise)
    assert crop(covered, (512, 256), 0.5, 0.5).shape == (512, 256, 3)


def test_a_large_image_is_resized_without_a_second_copy() -> None:
    # 64 million pixels of 4 bytes in Pillow; every copy as an array would be 192 MB more.
    content = saved(Image.new("RGB", (8000, 8000), "red"), "PNG")
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("needs /proc to measure memory")
    Path("/proc/self/clear_refs").write_text("5")

    def peak() -> int:
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) * 1024

    before = peak()
    assert Fitting(image_size=64, resize=64).fitted(content, "a.png").shape == (64, 64, 3)
    assert peak() - before < 400e6


def test_a_lack_of_memory_is_told_with_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Image.Image, "resize", fail)
    with pytest.raises(DataError, match=r"^a\.png: there is not enough memory"):
        Fitting(image_size=8, resize=8).fitted(saved(plain(), "PNG"), "a.png")


def test_too_many_pixels_are_refused_and_pillow_s_limit_stays() -> None:
    limit = Image.MAX_IMAGE_PIXELS
    content = saved(Image.new("1", (20000, 10000)), "PNG")
    for read in (decode, shape_of):
        with pytest.raises(DataError, match=r"^pano\.png: .*200000000 pixels"):
            read(content, name="pano.png")
    assert limit == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("read", [decode, shape_of])
def test_what_is_no_file_is_named_and_never_waited_for(
    read: Callable[[Path], Any], tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "a.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "b.png").mkdir()
    for name, reason in (("a.png", "it is a FIFO"), ("zero.png", "it is a device"), ("b.png", "")):
        with pytest.raises(DataError, match=rf"{name}: {reason}"):
            read(tmp_path / name)


def test_a_name_that_is_not_utf_8_is_told_printably(tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/br\xe9ken.png")
    Path(path).write_bytes(b"x")
    with pytest.raises(DataError, match=r"br\\xe9ken\.png: ") as caught:
        decode(path)
    str(caught.value).encode()


def test_a_picture_up_to_the_bound_is_an_array(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "WHOLE", 0)
    image = Image.fromarray(noise(9, 8))
    assert isinstance(bicubic(image, (9, 8)), np.ndarray)  # nothing to resize
    assert isinstance(bicubic(image, (18, 16)), Piecewise)
