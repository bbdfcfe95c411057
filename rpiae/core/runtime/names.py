"""Names and values that come from outside, as they may leave the process."""

from __future__ import annotations

import math
import reprlib
import unicodedata
from typing import Any


def printable(name: str) -> str:
    """A name as one line of valid Unicode: for messages, logs, indexes and reports.

    File names are bytes. Python holds those that are not UTF-8 as lone surrogates, which no file
    or terminal takes. They, and control characters, become ``\\xff``; all else stays as it is.
    """
    if name.isascii() and name.isprintable():
        return name
    return "".join(_shown(character) for character in name)


def _shown(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that Python could not decode (PEP 383)
        return f"\\x{code - 0xDC00:02x}"
    if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp"):
        return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
    return character


#: Bytes of the longest name that becomes part of a file's name; file systems take 255.
LONGEST_NAME = 120


def not_plain(name: str) -> str:
    """Why a name cannot become a file's or folder's name as it stands; empty where it can."""
    if not name:
        return "it is empty"
    if len(name.encode("utf-8", "surrogatepass")) > LONGEST_NAME:
        return f"it is longer than {LONGEST_NAME} bytes"
    if "/" in name or "\\" in name:
        return "it holds a path separator"
    if name.startswith("."):
        return "it begins with a dot"
    if printable(name) != name:
        return "it holds control characters, or bytes that are no text"
    if name != name.strip():
        return "it begins or ends with a blank"
    return ""


class _Short(reprlib.Repr):
    """The repr of anything, in bounded space and time."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 120
        self.maxlong = 40

    def repr_int(self, x: int, level: int) -> str:
        # Python refuses to write more than 4,300 digits; the logarithm needs none of them.
        if x.bit_length() > 4 * self.maxlong:
            digits = int(x.bit_length() * math.log10(2)) + 1
            return f"a number of about {digits} digits"
        return super().repr_int(x, level)


_short = _Short()


def shown(value: Any) -> str:
    """A value as a message shows it: its repr on one line, cut where it is long."""
    return printable(_short.repr(value))
