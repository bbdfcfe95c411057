"""Names that come from outside, as they may leave the process."""

from __future__ import annotations

import unicodedata


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
