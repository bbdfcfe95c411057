"""Members of tar shards, grouped into samples; nothing of a header is trusted."""

from __future__ import annotations

import lzma
import os
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple, Self

from attrs import define, field, frozen

from rpiae.core.runtime.names import printable
from rpiae.data.sources import EXTENSIONS

#: Bytes of a header that holds a long name or extended attributes.
MOST_OF_HEADER = 1 << 20

#: Bytes of any member, and of an encoded image; a header that says more is damaged or hostile.
MOST_OF_MEMBER = 1 << 36
MOST_OF_IMAGE = 1 << 30

#: Words in a member's name that say it is no photograph but goes with one.
BESIDE = frozenset({
    "alpha", "annotation", "depth", "disparity", "edge", "edges", "flow", "instance", "label", "labels",
    "mask", "masks", "matte", "normal", "normals", "parsing", "preview", "saliency", "seg", "segm",
    "segmentation", "semantic", "sketch", "thumb", "thumbnail",
})  # fmt: skip

#: Kinds of images in a shard; what is more of them are parts of names.
MOST_KINDS = 16

#: What opening, reading and unpacking a shard may raise.
READING = (OSError, EOFError, tarfile.TarError, zlib.error, lzma.LZMAError)

_LONG = (
    tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)  # fmt: skip


class Member(tarfile.TarInfo):
    """A member whose damaged, missing or absurd header is an error.

    ``tarfile`` takes the first two for the end of the archive, and goes back in it, for ever, where a
    size is negative (CVE-2025-8194).
    """

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        member = super().frombuf(buf, encoding, errors)
        if member.type in _LONG and not 0 <= member.size <= MOST_OF_HEADER:
            raise tarfile.InvalidHeaderError("size of a long header")  # type: ignore[attr-defined]  # undocumented
        return member

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        start: int = archive.offset
        try:
            member = super().fromtarfile(archive)
        except tarfile.InvalidHeaderError as error:  # type: ignore[attr-defined]  # undocumented
            raise tarfile.ReadError(f"damaged header at byte {start} ({error})") from None
        except (tarfile.EmptyHeaderError, tarfile.TruncatedHeaderError):  # type: ignore[attr-defined]  # undocumented
            if start == 0:
                raise tarfile.ReadError("it is empty") from None
            raise tarfile.ReadError(f"it ends at byte {start}, unfinished") from None
        except (ValueError, IndexError, OverflowError, RecursionError) as error:
            # What tarfile stumbles over in extended headers.
            raise tarfile.ReadError(f"damaged header at byte {start} ({error})") from None
        if not 0 <= member.size <= MOST_OF_MEMBER or archive.offset <= start:
            raise tarfile.ReadError(f"damaged header at byte {start} (size {member.size})")
        return member


def members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The members in order; unlike the archive itself, this keeps none in memory."""
    while (member := archive.next()) is not None:
        archive.members.clear()  # type: ignore[attr-defined]  # undocumented
        yield member


def key_and_ending(name: str) -> tuple[str, str]:
    """What a member's name says: the sample's key, and what the member is in it.

    As in the ``webdataset`` library the key ends at the first dot of the base name, but numbers
    between dots belong to it: ``IMG.0001.jpg`` and ``IMG.0002.jpg`` are two samples. Both are empty for
    names that begin with a dot or have none, and for the library's own ``__…__``.
    """
    folder, slash, base = name.rpartition("/")
    words = base.split(".")
    if len(words) < 2 or not words[0] or (name.startswith("__") and "__" in name[2:]):
        return "", ""
    last = max((i for i in range(1, len(words) - 1) if words[i][:1].isdigit()), default=0)
    return folder + slash + ".".join(words[: last + 1]), ".".join(words[last + 1 :])


@frozen(kw_only=True)
class Kind:
    """What is looked for in shards.

    Attributes:
        one: what one is called.
        article: what stands before it.
        many: what several are called.
        extensions: of the members' names; of several in a sample, earlier ones win.
        most: bytes of one; what says more is left out.
    """

    one: str
    article: str
    many: str
    extensions: Sequence[str]
    most: int

    def has(self, ending: str) -> bool:
        """Whether a member is of this kind, by what follows the sample's key."""
        return os.path.splitext(f"x.{ending.lower()}")[1] in self.extensions


IMAGES = Kind(one="image", article="an", many="images", extensions=EXTENSIONS, most=MOST_OF_IMAGE)


def is_image(ending: str) -> bool:
    """Whether a member is an image, by what follows the sample's key."""
    return IMAGES.has(ending)


class Sample(NamedTuple):
    """Members that follow each other and share a key.

    Attributes:
        key: what they share.
        members: what each of them is in the sample, by its ending, with its header.
    """

    key: str
    members: dict[str, tarfile.TarInfo]

    def images(self, wanted: str, kind: Kind = IMAGES) -> list[str]:
        """Endings of the members that are taken, best first.

        Args:
            wanted: the ending of the image; ``*`` for all images. Where empty, the first one is the
                image: endings of one part come before those of several, ``extensions`` in their
                order, ``BESIDE`` last, and otherwise the order of the shard decides.
            kind: what is looked for; above, images stand for it.
        """
        if wanted and wanted != "*":
            return [e for e in self.members if e.lower() == wanted]
        found = [ending for ending in self.members if kind.has(ending)]
        return found if wanted else sorted(found, key=partial(_rank, kind.extensions))


def _rank(extensions: Sequence[str], ending: str) -> tuple[bool, bool, int]:
    stem, extension = os.path.splitext(f"x.{ending.lower()}")
    words = stem.replace("_", ".").replace("-", ".").split(".")
    beside = any(word.rstrip("0123456789") in BESIDE for word in words)
    return beside, stem != "x", extensions.index(extension)


@define
class Tally:
    """What of some shards is taken and what is left out.

    Attributes:
        kind: what is looked for; below, images stand for it.
        several: samples of several images of which one is taken.
        others: images that are left out so.
        example: such a sample, in words.
        kinds: taken images by what stands between key and extension.
        endings: members by their ending.
        unread: members that are no files, by their kind.
    """

    kind: Kind = IMAGES
    several: int = 0
    others: int = 0
    example: str = ""
    kinds: Counter[str] = field(factory=Counter)
    endings: Counter[str] = field(factory=Counter)
    unread: Counter[str] = field(factory=Counter)

    def add(self, sample: Sample, found: Sequence[str], wanted: str) -> None:
        """Count a sample, of which the first of the images found is taken (with ``*``, all)."""
        self.endings.update(ending.lower() for ending in sample.members)
        if not found or wanted:
            return
        self.kinds[os.path.splitext(f"x.{found[0].lower()}")[0][2:]] += 1
        if len(found) > 1:
            self.several += 1
            self.others += len(found) - 1
            self.example = self.example or (
                f"{printable(found[0])} of {printable(sample.key)} and not "
                f"{', '.join(printable(ending) for ending in found[1:4])}"
            )

    def merge(self, other: Tally) -> None:
        """Add what another one counted."""
        self.several += other.several
        self.others += other.others
        self.example = self.example or other.example
        self.kinds += other.kinds
        self.endings += other.endings
        self.unread += other.unread

    def notices(self, where: str, *, counted: bool = True) -> tuple[str, ...]:
        """What is to be said, of all shards together.

        Args:
            where: what messages call them.
            counted: whether numbers are told; without them, shards that are alike say the same.
        """
        how = "set data.member to the ending of the right one, or to '*' to take all"
        found = []
        if self.several:
            number = f"{self.several} samples" if counted else "samples"
            less = f", {self.others} {self.kind.many} are left out" if counted else ""
            found.append(
                f"{where}: {number} hold several {self.kind.many}, of which one is taken{less}; such as "
                f"{self.example}; {how}"
            )
        if 1 < len(self.kinds) <= MOST_KINDS:
            kinds = (
                f"{printable(kind) or 'plain'} ({number})" if counted else printable(kind) or "plain"
                for kind, number in self.kinds.most_common(4)
            )  # fmt: skip
            many = self.kind.many
            found.append(f"{where}: {many} of different kinds are taken: {', '.join(kinds)}; {how}")
        if self.unread:
            kinds = (
                f"{kind} ({number})" if counted else kind
                for kind, number in self.unread.most_common()
            )
            found.append(f"{where}: left out {', '.join(kinds)}")
        return tuple(found)


def samples(
    archive: tarfile.TarFile, tally: Tally, visit: Callable[[str, tarfile.TarInfo], None]
) -> Iterator[Sample]:
    """The samples of a shard in its order, also the last one before damage.

    A member whose ending the sample has already begins a new one.

    Args:
        archive: the shard.
        tally: counts what is in no sample.
        visit: is called with the ending and the header of every member of a sample while the shard
            stands there, before its sample is given.

    Raises:
        tarfile.ReadError, OSError, EOFError, zlib.error, lzma.LZMAError: if the shard is damaged.
    """
    key, found = "", dict[str, tarfile.TarInfo]()
    try:
        for member in members(archive):
            if kind := _unread(member, tally.kind):
                tally.unread[kind] += 1
                continue
            own, ending = key_and_ending(member.name) if member.isreg() else ("", "")
            if not own:
                continue
            if own != key or ending in found:
                if found:
                    yield Sample(key, found)
                key, found = own, {}
            visit(ending, member)
            found[ending] = member
    except READING:
        if found:
            yield Sample(key, found)
        raise
    if found:
        yield Sample(key, found)


def _unread(member: tarfile.TarInfo, wanted: Kind) -> str:
    """Why the content of a member is not read; nothing where it is, or where nobody misses it."""
    if member.islnk() or member.issym():
        return "links"
    if member.issparse():
        return "sparse files"
    if member.isdev():
        return "devices and FIFOs"
    if not member.isreg():
        return ""
    base = member.name.rpartition("/")[2]
    key, ending = key_and_ending(member.name)
    if not key and "." in base and wanted.has(base):
        return f"{wanted.many} whose names begin with . or __"
    if member.size > wanted.most and wanted.has(ending):
        return f"{wanted.many} of more than {wanted.most >> 30} GiB"
    return "members without an ending" if base and "." not in base else ""
