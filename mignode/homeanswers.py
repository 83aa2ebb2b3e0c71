"""Home's answers to the questions of a handover: the rules of handover.py on the record that is written down.

Whatever is answered is on disk before.  No await between reading a record and writing it, so questions that come
together are answered one after the other.  Who asks is the node at the other end of the line, whatever the word says.
What it does not do: know lines or links, wake whoever waits for a guest (deputies).  Called by deputies.
"""

from __future__ import annotations

import errno
from typing import TypeAlias, assert_never

from mignode import handover
from mignode.handover import Record
from mignode.record import Files, home_of
from mignode.words import Attend, Begin, Begun, Commit, GiveBack, Located, Refused, WhereIs
from omfs.errors import HandoverRefused

Question: TypeAlias = Begin | Commit | WhereIs | GiveBack | Attend


def answer(kept: Files[Record], here: int, sender: int, question: Question) -> Begun | Located | Refused:
    """*here*: this node; *sender*: who asks.  Raises OSError where the record can't be written: then nothing holds."""
    guest = question.guest
    if home_of(guest) != here:
        return Refused(errno.ESRCH, f"guest {guest} is not one of node {here}")
    record = kept.read(guest)
    if record is None:
        if isinstance(question, Begin):
            return Refused(errno.ESRCH, f"guest {guest} has ended")
        return handover.gone(question.epoch if isinstance(question, Attend) else question.attempt)
    try:
        changed, said = _answer(record, sender, question)
    except HandoverRefused as error:
        return Refused(error.errno, str(error))
    if changed != record:
        kept.write(guest, changed)
    return said


def _answer(record: Record, sender: int, question: Question) -> tuple[Record, Begun | Located]:
    match question:
        case Begin(epoch=epoch, destination=destination):
            record = handover.begin(record, sender, epoch, destination)
            return record, Begun(record.issued, destination)
        case Commit(attempt=attempt):
            record = handover.commit(record, sender, attempt)
        case WhereIs(attempt=attempt):
            record = handover.asked(record, sender, attempt)
        case GiveBack(attempt=attempt):
            record = handover.given_back(record, sender, attempt)
        case Attend(epoch=attempt):
            record = handover.attended(record, sender, attempt)
        case _:
            assert_never(question)
    return record, record.located(attempt)
