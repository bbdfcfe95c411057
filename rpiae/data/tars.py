"""Tar shards in the WebDataset layout: local ones by an index, others as streams."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, Unpack

from rpiae.core.errors import DataError, UsageError
from rpiae.core.runtime.names import printable
from rpiae.data.image_dataset import ImageOptions, SplitDataset
from rpiae.data.loading import chosen_workers
from rpiae.data.members import READING, Member, Tally, is_image, samples
from rpiae.data.opening import is_seekable, open_shard, shards_of
from rpiae.data.paths import as_path
from rpiae.data.readers import Encoded, Stream
from rpiae.data.streams import StreamDataset, check_not_streaming
from rpiae.data.tar_index import IndexedTars, normal_ending, reason, without_image

#: Reads behind the end of a stream that a whole archive may take.
READS_BEHIND_END = 8

#: How a command ends that succeeded, or whose output nobody wants any more; None where there is none.
CLOSED = (None, 0, 23, 141, -13)


class _ToItsEnd:
    """A file that says so where it is read on behind its end.

    ``tarfile`` passes over a member in steps, and takes as many as its header says, to no end.
    """

    def __init__(self, file: Any) -> None:
        self._file = file
        self._behind = 0

    def read(self, size: int) -> Any:
        """Up to ``size`` bytes; nothing a few times at the end."""
        found = self._file.read(size)
        self._behind = 0 if found else self._behind + 1
        if self._behind > READS_BEHIND_END:
            raise EOFError("unexpected end of data")
        return found


class PipedTars:
    """Tar shards that can only be read from their beginning; see ``Stream``.

    Args:
        location: what messages call the shards.
        urls: the shards, as ``open_shard`` opens them.
        member: see ``WebDatasetConfig``.
        problems: what is left out of the list of shards, in words.
    """

    def __init__(
        self, location: str, urls: Sequence[str], member: str, problems: tuple[str, ...] = ()
    ) -> None:
        self.location = printable(location)
        self.total: int | None = None
        self.problems = problems
        self._urls = urls
        self._wanted = normal_ending(member)

    def __len__(self) -> int:
        return len(self._urls)

    def shard(self, index: int) -> str:
        return printable(self._urls[index])

    def count(self, index: int) -> None:
        return None

    def images(self, index: int) -> Iterator[Encoded | str]:
        where = self.shard(index)
        without: list[str] = []
        tally = Tally()
        file = open_shard(self._urls[index])
        try:
            shard: Any = _ToItsEnd(file)
            with tarfile.open(fileobj=shard, mode="r|*", tarinfo=Member) as archive:
                yield from self._samples(where, archive, tally, without)
            # What follows the archive is read too, or the command behind it would not end well.
            while file.read(1 << 16):
                pass
            file.close()
        except READING as error:
            raise DataError(f"{where}: {_ending(file) or reason(error)}") from None
        finally:
            with suppress(*READING):
                file.close()
        if without:
            yield without_image(where, without)
        yield from tally.notices(self.location, counted=False)

    def _samples(
        self, where: str, archive: tarfile.TarFile, tally: Tally, without: list[str]
    ) -> Iterator[Encoded]:
        contents: dict[str, bytes] = {}

        def visit(ending: str, member: tarfile.TarInfo) -> None:
            one = self._wanted not in ("", "*")
            if ending.lower() == self._wanted if one else is_image(ending):
                content = archive.extractfile(member)
                assert content is not None
                contents[member.name] = content.read()

        for sample in samples(archive, tally, visit):
            images = sample.images(self._wanted)
            tally.add(sample, images, self._wanted)
            without += [] if images else [printable(sample.key)]
            for ending in images if self._wanted == "*" else images[:1]:
                name = sample.members[ending].name
                yield Encoded(f"{where}/{printable(name)}", contents[name])
            contents.clear()


def _ending(file: Any) -> str:
    """How the command behind a shard ended, where it ended badly."""
    with suppress(*READING):
        file.close()
    status = getattr(file, "status", None)
    return f"its command ended with status {status}" if status not in CLOSED else ""


def webdataset(
    *,
    path: str,
    split: str = "",
    member: str = "",
    label_column: str | None = None,
    classes: Sequence[str] = (),
    streaming: bool = False,
    num_images: int | None = None,
    buffer: int = 1024,
    readers: int = 8,
    **options: Unpack[ImageOptions],
) -> SplitDataset | StreamDataset:
    """Images in tar shards in the WebDataset layout, in any order or as a stream.

    Args:
        path: the shards: a folder of ``*.tar``, or names with braces.
        split, member, label_column, classes: see ``WebDatasetConfig``.
        streaming, num_images, buffer, readers: see ``StreamableDatasetConfig``.
        options: see ``ImageDatasetConfig``.

    Raises:
        DataError: if no shard has a usable image.
        FetchError: if a shard is on the network, and HF_HUB_OFFLINE is set.
        UsageError: if the shards can only be streamed and ``streaming`` is not set, a shard is a
            command that nobody allowed, or an option does not go with the others.
    """
    urls, problems = shards_of(path, split)
    stream: Stream
    if all(map(is_seekable, urls)):
        source = IndexedTars(
            path, list(map(as_path, urls)), member, label_column=label_column, classes=classes,
            workers=chosen_workers(options.get("workers")), problems=problems,
        )  # fmt: skip
        if not streaming:
            check_not_streaming(num_images)
            return SplitDataset(source, options)
        stream = source.stream()
    elif not streaming:
        other = next(url for url in urls if not is_seekable(url))
        raise UsageError(
            f"{printable(other)} can only be read from its beginning: set data.streaming = true and "
            "data.num_images to the number of images in all shards, or unpack it into plain tar "
            "files on a local disk"
        )
    else:
        stream = PipedTars(path, urls, member, problems)
    return StreamDataset(
        stream, {**options, "num_images": num_images, "buffer": buffer, "readers": readers}
    )
