"""Which of the two was stopped because of the other: the program, or mosrun, which stands for it at home.

Where the program is stopped (Ctrl-Z, kill -STOP inside), mosrun is told and stops itself; what continues mosrun, it
passes on.  Where mosrun itself is stopped by kill(2), it can't say so; home's mignode sees it and has the program
stopped.  Neither may be taken for the other: a mosrun that was continued and then hears of the stop that it has caused
would stop again.  Goes along when the guest moves.

Pure.  Called by bodyfiles.py.
"""

from __future__ import annotations

import msgspec


class Stops(msgspec.Struct, forbid_unknown_fields=True):
    """*is_said*: mosrun was told that the program is stopped.  *is_deputys*: mosrun was stopped first.

    Either holds until mosrun was continued.
    """

    is_said: bool = False
    is_deputys: bool = False

    def of_deputy(self) -> bool:
        """mosrun was stopped; whether the program has to be."""
        self.is_deputys = not self.is_said
        return self.is_deputys

    def of_program(self) -> bool:
        """The program was; whether mosrun has to hear that."""
        is_news = not self.is_said and not self.is_deputys
        self.is_said |= is_news
        return is_news

    def program_continued(self) -> bool:
        """Whether mosrun has to hear that."""
        self.is_said = False
        return not self.is_deputys

    def deputy_continued(self) -> None:
        self.is_said = self.is_deputys = False
