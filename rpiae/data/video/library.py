"""PyAV, where it is installed."""

from __future__ import annotations

from typing import Any

from rpiae.core.errors import MissingExtraError


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
