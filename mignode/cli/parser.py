"""The argument parser of users' commands: a wrong command line gives one line that says where help is, and status 2."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NoReturn

from omfs.config import SOFTWARE

EXIT_REFUSED: Final = 1
EXIT_USAGE: Final = 2
EXIT_NOT_RUNNING: Final = 3
EXIT_INTERRUPTED: Final = 130
PID_MAX: Final = 1 << 22  # of Linux
DIGITS_MAX: Final = 20  # Python refuses thousands, in words of its own


class Parser(argparse.ArgumentParser):
    """With --version, and the description as it is written."""

    def __init__(self, prog: str, about: str) -> None:
        super().__init__(prog=prog, description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
        self.add_argument("--version", action="version", version=SOFTWARE)

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message} (see {self.prog} --help)", file=sys.stderr)
        sys.exit(EXIT_USAGE)


def complain(prog: str, text: str, status: int) -> int:
    """One line; the status to end with."""
    print(f"{prog}:", " ".join(text.split("\n")), file=sys.stderr)
    return status


def whole(text: str, low: int, high: int) -> int:
    """A number in digits.  Raises ValueError, which says so."""
    if not (text.isascii() and text.isdigit() and len(text) <= DIGITS_MAX and low <= int(text) <= high):
        raise ValueError(f'"{text}" is no number from {low} to {high}')
    return int(text)


def number_from(low: int, high: int) -> Callable[[str], int]:
    """A type of arguments."""

    def number(text: str) -> int:
        try:
            return whole(text, low, high)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return number


def without_mfs(words: Sequence[str]) -> tuple[Path | None, list[str]]:
    """What --mfs says, and all other words: for commands that hand those on.  Raises ValueError: it says nothing."""
    mfs, others = None, []
    left = iter(words)
    for word in left:
        if word != "--mfs" and not word.startswith("--mfs="):
            others.append(word)
        elif said := next(left, "") if word == "--mfs" else word.removeprefix("--mfs="):
            mfs = Path(said)
        else:
            raise ValueError("--mfs needs a directory")
    return mfs, others
