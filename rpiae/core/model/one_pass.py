"""Which pictures a tokenizer takes in one pass, and which only in tiles."""

from __future__ import annotations

from rpiae.core.errors import UsageError
from rpiae.core.model.tokenizer import RPiAE

#: Tokens of one picture, or frame, above which it is not encoded in one pass: attention grows with
#: their square.
MOST_TOKENS = 4096


def check_one_pass(model: RPiAE, height: int, width: int, *, name: str) -> None:
    """Refuse a picture, or frames, too large for one pass.

    Args:
        model: what they go through.
        height, width: theirs, in pixels.
        name: what messages call them.

    Raises:
        UsageError: if they are of too many tokens.
    """
    _, rows, columns = model.geometry(height, width).grid
    if rows * columns > MOST_TOKENS:
        raise UsageError(
            f"{name} is {height}×{width} pixels, {rows * columns:,} tokens in one pass; more than "
            f"{MOST_TOKENS:,} are refused. Add --tile to go over it in blended, overlapping tiles"
        )


def beyond_training(model: RPiAE, height: int, width: int) -> str:
    """What is to be said of pictures in one pass that are far larger than the training crops; empty
    where they are not."""
    trained = model.trained_size
    if not trained or max(height, width) <= 2 * trained:
        return ""
    return (
        f"this tokenizer was trained on {trained}×{trained} crops; in one pass, {height}×{width} has "
        "positions it never saw. --tile keeps to what it knows"
    )
