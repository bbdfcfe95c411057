"""What the stages of a run were really trained with, session by session.

A run that is gone on with may change what does not matter to its weights but for rounding, such as the
precision. What is said of its stages afterwards has to be what was so when they were trained.
"""

from __future__ import annotations

import json
from pathlib import Path

import attrs
from attrs import frozen

from rpiae.core.config.convert import make_converter, parse
from rpiae.core.errors import CheckpointError, ConfigError
from rpiae.core.runtime.files import read_json, write_text

HISTORY_FILE = "history.json"


@frozen(kw_only=True)
class Session:
    """A time in which a run was trained without a break.

    Attributes:
        stage, step: where it went on from.
        settings: what the end of each stage depends on, were it trained as now.
        data: fingerprint of the images, their files' times left out.
    """

    stage: int
    step: int
    settings: tuple[str, ...]
    data: str

    @property
    def start(self) -> tuple[int, int]:
        """Where it went on from."""
        return self.stage, self.step


def begin_session(folder: Path, session: Session) -> None:
    """Write down that a run goes on; what earlier sessions did beyond that point is lost.

    Raises:
        RunError: if it cannot be written.
    """
    kept = [each for each in sessions(folder) if each.start < session.start]
    rows = [attrs.asdict(each) for each in (*kept, session)]
    write_text(folder / HISTORY_FILE, json.dumps(rows, indent=1) + "\n")


def sessions(folder: Path) -> tuple[Session, ...]:
    """The sessions of a run in order; none where nobody wrote them down, or the file is damaged."""
    path = folder / HISTORY_FILE
    try:
        return parse(
            read_json(path), tuple[Session, ...], source=str(path), converter=make_converter()
        )
    except (CheckpointError, ConfigError):
        return ()


def trained_with(folder: Path, stage: int) -> str:
    """The settings that a stage was trained with from its first step to where it is.

    Returns:
        Nothing where they changed on the way, or where nobody wrote them down.
    """
    listed = sessions(folder)
    following = [*(each.start for each in listed[1:]), (stage + 1, 0)]
    during = [
        each
        for each, end in zip(listed, following, strict=False)
        if each.start < (stage + 1, 0) and end > (stage, 0)
    ]
    if not during or during[0].start > (stage, 0):
        return ""
    found = {each.settings[stage] if stage < len(each.settings) else "" for each in during}
    return found.pop() if len(found) == 1 else ""
