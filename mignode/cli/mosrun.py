"""`mosrun`: run a program that may move to other nodes; nomig, runhome ... are called by the same function.

It asks mignode to start the program and then is its deputy: the process that the user sees (mignode/deputyloop.py).
Where no mignode runs, it just becomes the program.  Exit statuses are the program's; if it can't be started, a shell's:
127 not found, 126 not executable; 125 where mosrun itself can't do what it was told.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

import msgspec

from mignode.deputyfiles import plan_of
from mignode.deputyloop import Deputy, ProgramRefused, ask, end_as
from mignode.deputywords import SOCKET, Restart, Run
from mignode.filewords import FilesPlan, Kind
from mignode.mosrunoptions import USAGE, WRAPPERS, Checkpoints, Parsed, parse, words_of
from omfs.config import DEFAULT_CONFIG, load_settings
from omfs.errors import ConfigError, ControlError, NotRunning, OmfsError

if TYPE_CHECKING:
    from mignode.imagegiver import OpenImage
    from mignode.imagekeeper import ImageKeeper

_FAILED: Final = 125
_NOT_EXECUTABLE: Final = 126
_NOT_FOUND: Final = 127
_CHANGED_BY_PYTHON: Final = (signal.SIGPIPE, signal.SIGXFSZ)  # ignored from its start; what was before, nobody knows
_kept_open: Final[list[OpenImage]] = []  # locked until we end
_CONFIG: Final = "OMFS_CONFIG"  # the variable that names another omfs.toml

_ABOUT: Final = f"""{USAGE}

Run a program that may move to other nodes while it runs.  Outside a cluster it just runs here.
                   without a place: it starts at home, and soon goes on elsewhere where that is clearly better
  -h, -ID, -jLIST  start at home, on that node, on the best of these nodes; -F: here, if it can't start there
  -b               on the best node of all, as things are now
  -l, -L, -k       may be moved by others than you, may not (with a node: so unless said otherwise), as before
  -c, -i           uses mostly the CPU, mostly files
  -n, -s, -f       what it did is never forgotten, slowly, fast; -d DEC -t TT: DEC thousandths kept every TT seconds
  -e, -E           that holds after an execve too, does not;  -r, -R: for its children too, not for them
  -z               the first argument is the program's own name (argv[0])
  --checkpoint T   keep an image of it, renewed every T (90, 5m, 2h), to go on with when it was killed or lost
  --image FILE     there; to outlive this node, on another (/mfs/3/...); else PROGRAM.PID.image here
  --restart FILE   go on with the image, on this node; checkpoints as before unless said otherwise (0: none)
  --show FILE      tell what an image is of"""


def main() -> int:
    """Entry point of mosrun and of the wrappers: the name it is called by tells which."""
    signal.signal(signal.SIGINT, signal.SIG_DFL if _is_default(signal.SIGINT) else signal.SIG_IGN)
    name = os.path.basename(sys.argv[0])
    words = sys.argv[1:]
    if words[:1] == ["--help"]:
        print(_ABOUT)
        return 0
    try:
        parsed = parse(words_of(name, words) if name in WRAPPERS else words)
    except ConfigError as error:
        print(f"{name}: {error}\n{USAGE}", file=sys.stderr)
        return _FAILED
    return _show(name, parsed.checkpoints.show) if parsed.checkpoints.show else _run(name, parsed)


def _run(name: str, parsed: Parsed) -> int:
    try:
        settings = load_settings(Path(os.environ.get(_CONFIG, DEFAULT_CONFIG)))
        plan = plan_of()
        closed = [number for number, kind in enumerate(plan.kinds) if kind is Kind.CLOSED]
        _occupy(closed)
        path = Path(settings.run_dir) / SOCKET
        if parsed.checkpoints == Checkpoints():
            deputy, keeper = ask(path, _request(parsed, plan), plan), None
        else:
            deputy, keeper, parsed = _with_image(path, parsed, plan)
    except NotRunning as error:
        if parsed.checkpoints.restart:
            print(
                f"{name}: mignode does not run here ({error}), and without it nothing can be restarted", file=sys.stderr
            )
            return _FAILED
        if parsed.checkpoints.every_s:
            print(f"{name}: no mignode runs here: there will be no checkpoints", file=sys.stderr)
        for number in closed:
            os.close(number)
        _become(name, parsed)
    except ProgramRefused as error:
        return _say_why_not(name, parsed, error.errno)
    except (OmfsError, OSError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return _FAILED
    _be_called(parsed.arguments)
    try:
        if deputy.warning:
            deputy.say(deputy.warning)
        deputy.serve(keeper)
    except OmfsError as error:
        print(f"{name}: {error}", file=sys.stderr)
        end_as(signal.SIGKILL)


def _with_image(path: Path, parsed: Parsed, plan: FilesPlan) -> tuple[Deputy, ImageKeeper, Parsed]:
    """One that has checkpoints, or was one.  Raises as `ask` does, ConfigError."""
    from mignode.imagegiver import OpenImage, plan_for  # few want it, and mosrun starts quickly
    from mignode.imagekeeper import ImageKeeper, check_place

    asked = parsed.checkpoints
    file = os.fsencode(os.path.realpath(asked.image or asked.restart or _usual_file(parsed)))
    if not asked.restart:
        check_place(file)
        deputy = ask(path, _request(parsed, plan), plan)
        return deputy, ImageKeeper(path, deputy.guest, file, asked.every_s or 0, deputy.say), parsed
    image = OpenImage(asked.restart)
    is_same = os.fsencode(os.path.realpath(asked.restart)) == file
    if not is_same:
        check_place(file)
    try:
        deputy = ask(path, Restart(parsed.options), plan_for(image.head, plan), image.give)
    except ControlError as error:
        raise ControlError(f"{asked.restart}: {error}") from None
    every_s = image.head.every_s if asked.every_s is None else asked.every_s
    keeper = ImageKeeper(path, deputy.guest, file, every_s, deputy.say, image.place if is_same else None)
    if is_same:
        keeper.kept = image.close  # the lock was on the file that is no more
    else:
        _kept_open.append(image)
    return deputy, keeper, msgspec.structs.replace(parsed, arguments=tuple(map(os.fsdecode, image.head.arguments)))


def _usual_file(parsed: Parsed) -> str:
    """Where nobody says another."""
    return f"{os.path.basename(parsed.program)}.{os.getpid()}.image"


def _show(name: str, file: str) -> int:
    from mignode.imagefile import told
    from mignode.imagegiver import OpenImage

    try:
        image = OpenImage(file, is_locked=False)
    except ConfigError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return _FAILED
    print(told(image.head))
    image.close()
    return 0


def _occupy(numbers: list[int]) -> None:
    """So that no socket of ours gets them, and is taken for a standard file."""
    null = os.open(os.devnull, os.O_RDWR)
    for number in numbers:
        os.dup2(null, number)
    if null not in numbers:
        os.close(null)


def _request(parsed: Parsed, plan: FilesPlan) -> Run:
    return Run(
        program=os.fsencode(parsed.program),
        arguments=tuple(map(os.fsencode, parsed.arguments)),
        environment=tuple(name + b"=" + value for name, value in os.environb.items()),
        directory=_directory(),
        plan=plan,
        options=parsed.options,
        ignored=tuple(number for number in signal.valid_signals() if not _is_default(number)),
        blocked=tuple(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
    )


def _directory() -> bytes:
    """Raises ConfigError."""
    try:
        return os.getcwdb()
    except FileNotFoundError:
        raise ConfigError("the directory that you are in has been removed; cd to another one") from None


def _is_default(number: int) -> bool:
    return number in _CHANGED_BY_PYTHON or signal.getsignal(number) is not signal.SIG_IGN


def _be_called(arguments: tuple[str, ...]) -> None:
    """ps and top show the program."""
    try:
        from setproctitle import setproctitle
    except ImportError:
        pass
    else:
        setproctitle(" ".join(arguments))
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_bytes(os.fsencode(os.path.basename(arguments[0]))[:15])


def _become(name: str, parsed: Parsed) -> NoReturn:
    """Execute it here."""
    for number in _CHANGED_BY_PYTHON:
        signal.signal(number, signal.SIG_DFL)
    try:
        _execute(parsed)
    except OSError as error:
        sys.exit(_say_why_not(name, parsed, error.errno or errno.EIO))


def _execute(parsed: Parsed) -> NoReturn:
    try:
        os.execvp(parsed.program, parsed.arguments)
    except OSError as error:
        if error.errno != errno.ENOEXEC:
            raise
    import shutil  # as execvp(3): what has no format is for the shell

    found = shutil.which(parsed.program) or parsed.program
    os.execv("/bin/sh", ["/bin/sh", found, *parsed.arguments[1:]])


def _say_why_not(name: str, parsed: Parsed, number: int) -> int:
    missing = number == errno.ENOENT
    reason = "command not found" if missing and "/" not in parsed.program else os.strerror(number)
    print(f"{name}: {parsed.program}: {reason}", file=sys.stderr)
    return _NOT_FOUND if missing else _NOT_EXECUTABLE


if __name__ == "__main__":
    sys.exit(main())
