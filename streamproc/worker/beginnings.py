"""Where to begin reading a partition, from what is known of it: its manifest, the group's offset, its log, its topic.

The log is not always the one we left. Retention goes on while nobody reads, a topic is deleted and made anew under
its name, a log is cut by an unclean election, somebody sets the group's offset by Kafka's own tools. Each of these is
told from the others here, and what was not read because of it is counted.

A topic made anew, or a log cut short, gives offsets out once more. Whatever rests on offsets (what a model has taken
already, what was joined, the ids of alerts) would take its records for those of before. So each such life of a log has
a number, and inside of the worker an offset is that number and the log's own together; see `inside` and `outside`.
"""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct

from streamproc.errors import OffsetsReset
from streamproc.worker.driver import Committed

#: Offsets of one life of a log are less than this; of a thousand lives the last are still exact in JSON.
_LIFE = 1 << 43

Why = Literal["policy", "manifest", "group", "new", "retention", "reset", "recreated", "truncated"]


def inside(offset: int, life: int) -> int:
    """Return an offset as the worker knows it, of a life of the log; -1 stays -1."""
    return offset + life * _LIFE if offset >= 0 else offset


def outside(offset: int) -> int:
    """Return the log's own offset.

    >>> outside(inside(17, 3)), outside(-1)
    (17, -1)
    """
    return offset % _LIFE if offset >= 0 else offset


class Log(Struct, frozen=True, kw_only=True):
    """A partition as the broker has it: its topic's id ("" where none is told), its first offset and its end."""

    topic_id: str
    begin: int
    end: int


class Beginning(Struct, frozen=True, kw_only=True):
    """Where a partition is begun: the log's offset, the log's life, and why there.

    gone: records that will not be read; None where nobody can say how many.
    """

    offset: int
    life: int
    why: Why
    gone: int | None = 0


def begin(
    name: str,
    manifest: dict[str, Any] | None,
    log: Log,
    *,
    committed: Committed | None,
    policy: Literal["earliest", "latest"],
    known: bool,
) -> Beginning:
    """Return where to begin a partition.

    name: of the partition, for messages. known: whether the group has offsets of other partitions of the topic, so
    that this one is new in it and was never passed over.

    Raises
    ------
    OffsetsReset
        where somebody set the group's offset back to what is in the state already.
    """
    start = log.end if policy == "latest" else log.begin
    if manifest is None:
        if committed is not None:
            return _within(committed.offset, log, life=0, why="group", start=start)
        return Beginning(offset=log.begin if known else start, life=0, why="new" if known else "policy")
    noted = manifest.get("log", {})  # none in manifests of before
    life = int(noted.get("life", 0))
    saved = outside(int(manifest["next_offset"]))
    was = noted.get("topic_id", "")
    if was and log.topic_id and was != log.topic_id:
        return Beginning(offset=start, life=life + 1, why="recreated", gone=None)
    if committed is not None and not committed.ours and noted.get("marked", False):
        if committed.offset < saved:
            raise OffsetsReset(
                f"{name}: another program has set the group's offset back to {committed.offset}, and the state covers "
                f"all before {saved}. Nothing was changed. To go on there: `streamproc offsets reset --to saved`. "
                f"To read again from {committed.offset}, and forget what was learned since: "
                f"`streamproc offsets reset --to group`"
            )
        if saved < committed.offset and saved <= log.end:
            # Beyond its end nothing is to be skipped yet.
            at = min(max(committed.offset, log.begin), log.end)
            return Beginning(offset=at, life=life, why="reset", gone=at - saved)
    return _within(saved, log, life=life, why="manifest", start=start, cut=bool(was and log.topic_id))


def _within(offset: int, log: Log, *, life: int, why: Why, start: int, cut: bool = False) -> Beginning:
    """Return an offset where the log has it; else the nearest place to go on from."""
    if offset < log.begin:
        return Beginning(offset=log.begin, life=life, why="retention", gone=log.begin - offset)
    if offset > log.end:
        # The same topic, and shorter: what comes at the offsets that were had is other records. Without ids of topics
        # it may as well be another topic, of which nothing was read.
        if cut:
            return Beginning(offset=log.end, life=life + 1, why="truncated", gone=None)
        return Beginning(offset=start, life=life + 1, why="recreated", gone=None)
    return Beginning(offset=offset, life=life, why=why)
