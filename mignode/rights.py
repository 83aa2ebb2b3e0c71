"""Whether what is about to be restored has no more rights than its user: what stands between forged images and us.

Images come from another node of the cluster, and say what ids and capabilities each thread will have.  CRIU gives them
those when nothing can stop it any more, so they are looked at before, in the images, and more strictly than CRIU reads
them: what it could understand in two ways is refused.  Whose guest it is, the source has said before.

In the images of CRIU 4.2 the rights of a thread are in its core-<thread>.img (images/core.proto, creds.proto); without
them it would look for creds-<process>.img, as old ones had it.  A zombie has none.

`has_only` is pure: WireError for what is no image.  Called by receive.py.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Final

from mignode.criuimages import as_bytes, as_number, fields_of, only_message

# Numbers of fields.
_THREAD: Final = 5  # of core_entry
_CREDS: Final = 10  # of thread_core_entry
_UIDS: Final = (1, 3, 5, 7)  # of creds_entry: real, effective, saved, of file systems
_GIDS: Final = (2, 4, 6, 8)
_CAPABILITIES: Final = (9, 10, 11)  # inheritable, permitted, effective
_GROUPS: Final = 14


def are_only(images: Path, uid: int, gid: int, groups: Collection[int]) -> bool:
    """Of all threads.  Root has all rights, and may have given up some.

    For worker threads.  Raises OSError, WireError.
    """
    if uid == 0:
        return True
    if list(images.glob("creds-*.img")):
        return False
    return all(has_only(path.read_bytes(), uid, gid, groups) for path in sorted(images.glob("core-*.img")))


def has_only(core: bytes, uid: int, gid: int, groups: Collection[int]) -> bool:
    """*core*: the image of a thread."""
    threads = [as_bytes(field.value) for field in fields_of(only_message(core)) if field.number == _THREAD]
    if not threads:
        return True  # a zombie: CRIU makes no thread of it
    creds = [as_bytes(field.value) for thread in threads for field in fields_of(thread) if field.number == _CREDS]
    if len(threads) != 1 or len(creds) != 1:
        return False
    fields = [(field.number, field.value) for field in fields_of(creds[0])]
    given = {number: {as_number(value) for other, value in fields if other == number} for number, _ in fields}
    return (
        all(given.get(number) == {uid} for number in _UIDS)
        and all(given.get(number) == {gid} for number in _GIDS)
        and all(given.get(number, set()) <= {0} for number in _CAPABILITIES)
        and given.get(_GROUPS, set()) <= {*groups, gid}
    )
