"""A guest's init: process 1 of its namespaces, on the node where it runs.  It outlives mignode.

It makes the guest's tree (dfsa/guestroot.py), starts the program or the CRIU that restores it, waits for whatever ends,
and holds the inner ends of the standard files (`Files`).  mignode speaks to it over body.sock (bodywords.py), one
connection at a time, the newest counts; the first is the one that it was born with.

Rules:

* one thread, and nothing waits but the one poll: what a child says between its fork and its execve is awaited there;
* it serves the guest's /proc (dfsa/procview.py), so no path of its own leads through /proc once that is laid over;
* a request that fails is answered with errno and reason, and never ends the init;
* each child that ends is waited for, orphans too.  Of the root's end the files are told, and mignode; but not while the
  files are frozen: then it is dumped, and lives elsewhere, unless ThawFiles comes, when it is told;
* it ends itself, and so the kernel all that is inside, when told to, or after BODY_ALONE_S without a mignode;
* what mignode must not lose by being killed, it keeps here (Keep): open descriptors, such as its end of a CRIU's
  socket, with which CRIU waits on, the listener of the guest's filter ("listener", kept by itself), and so on.

As process 1 it gets no signal from inside for which it has no handler.  Forked by the hatchery, never executed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import selectors
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final, NoReturn

from dfsa import guestroot
from dfsa.procview import DEVICE, ProcView, known_by, lay_over
from mignode import bodywords as words
from mignode.bodychild import become_command, become_program
from mignode.bodyends import Act, Files, MakeFiles
from mignode.bodysocket import BodySocket
from mignode.guestchildren import Born, Children, Continued, Ended, Event, NotBorn, Stopped
from mignode.ownproc import own_proc
from omfs.config import BODY_ALONE_S
from omfs.errors import WireError
from omfs.kernel.descriptors import have_exactly

SOCKET: Final = "body.sock"
ROOT: Final = "root"
"""Names in the guest's folder: where it listens, and where its tree is made."""
LISTENER: Final = "listener"
PROC: Final = "proc"

_COMM: Final = b"omfs-guest"
_CREDENTIALS: Final = struct.Struct("=3i")  # of SO_PEERCRED: pid, uid, gid


def live(folder: Path, world: guestroot.World, first: socket.socket, node_ipc: int, make_files: MakeFiles) -> NoReturn:
    """Be the init, in a child that was just forked into new namespaces.  *node_ipc*: a descriptor."""
    way = BodySocket(first)
    try:
        _begin(folder, world, way, node_ipc, make_files).serve()
    except BaseException as error:
        with contextlib.suppress(OSError):
            way.send(_failed(0, error))
    _end_all(1)


def _end_all(status: int) -> NoReturn:
    """With us the kernel ends all that is inside; but it closes our descriptors first.

    Then whoever waits for the listener of the guest's filter goes on with ENOSYS: a CRIU that was about to kill what it
    had restored takes that for done, and lets it run.
    """
    if os.getpid() == 1:
        with contextlib.suppress(OSError):  # nobody is there
            os.kill(-1, signal.SIGKILL)
    os._exit(status)


def _begin(folder: Path, world: guestroot.World, way: BodySocket, node_ipc: int, make_files: MakeFiles) -> GuestInit:
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    pid = int(os.readlink("/proc/self"))  # this /proc is still the node's, and so is the number
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    os.umask(0o177)
    listener.bind(str(folder / SOCKET))
    os.umask(0o022)
    listener.listen()
    listener.setblocking(False)
    (folder / ROOT).mkdir(exist_ok=True)
    for_view = _for_view() if world.has_procview else ()
    guestroot.enter(world, str(folder / ROOT))
    Path("/proc/self/comm").write_bytes(_COMM)
    null = os.open(os.devnull, os.O_RDWR)
    own = (way.fileno(), listener.fileno(), node_ipc, *for_view)
    have_exactly({0: null, 1: null, 2: null, **{each: each for each in own}})
    for each in own:
        os.set_inheritable(each, False)
    own_proc.directory = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    view = None
    if for_view:
        node_proc, device = for_view
        view = lay_over("/proc", device, os.fsencode(world.mfs), known_by(node_proc))
    return GuestInit(pid, way, listener, node_ipc, make_files, view)


def _for_view() -> tuple[int, int]:
    """What it needs of the node: its /proc, and a FUSE device, which no guest has."""
    return os.open("/proc", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)


class GuestInit:
    """The loop, and what it knows."""

    def __init__(
        self, pid: int, way: BodySocket, listener: socket.socket, node_ipc: int, make_files: MakeFiles,
        view: ProcView | None = None,
    ) -> None:  # fmt: skip
        self._pid = pid
        self._way: BodySocket | None = way
        self._alone_since_s = 0.0
        self._listener = listener
        self._node_ipc = node_ipc
        self._make_files = make_files
        self._view = view
        self._act = Act(lambda: self._root)
        self._files: Files | None = None
        self._is_frozen = False
        self._is_open = False  # the way to the deputy
        self._root = 0
        self._root_status: int | None = None
        self._is_adopted = False  # CRIU has made the root, and may still be at it
        self._has_run = False
        self._is_end_told = False  # of the root, to its deputy
        self._is_gone = False
        self._is_told = False  # all, and acknowledged
        self._children = Children()
        self._born_for: dict[int, int] = {}  # who asked for a child, by its pid
        self._kept: dict[str, list[int]] = {}
        self._woken, waking = socket.socketpair()
        self._woken.setblocking(False)
        waking.setblocking(False)
        signal.set_wakeup_fd(waking.detach(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        self._greet()

    def serve(self) -> None:
        """Until it is to end, or nobody wants it any more."""
        while (patience_s := self._patience_s()) is None or patience_s > 0:
            self._turn(patience_s)

    def _patience_s(self) -> float | None:
        """How long to wait for a mignode; None: one is there.  As long as nothing was begun, nobody comes again."""
        if self._way is not None:
            return None
        has_begun = self._files is not None or self._children.commands
        return self._alone_since_s + BODY_ALONE_S - time.monotonic() if has_begun else 0

    def _turn(self, patience_s: float | None) -> None:
        with selectors.PollSelector() as selector:
            for what, events, heed in self._watched():
                selector.register(what, events, heed)
            found = selector.select(patience_s)
        for key, events in found:
            key.data(key.fd, events)
        if self._is_gone and not self._is_told and not self._is_frozen:
            self._is_told = self._files is None or self._files.is_finished
            if self._is_told:
                self._tell(words.Told())

    def _watched(self) -> Iterator[tuple[Any, int, Callable[[int, int], None]]]:
        """In the order in which they are heeded: what the program says before what is said to it."""
        if self._view is not None and not self._view.has_ended:
            yield self._view.device, selectors.EVENT_READ, self._heed_view
        if self._files is not None and not self._is_frozen:
            for fd, events in self._files.descriptors():
                yield fd, events, self._heed_file
        for channel in self._children.channels():
            yield channel, selectors.EVENT_READ, self._heed_births
        yield self._woken, selectors.EVENT_READ, self._heed_children
        if self._way is not None:
            behind = selectors.EVENT_WRITE if self._way.is_behind else 0
            yield self._way, selectors.EVENT_READ | behind, self._heed_way
        yield self._listener, selectors.EVENT_READ, self._heed_listener

    def _heed_view(self, _: int, __: int) -> None:
        if self._view is not None:
            self._view.ready()

    def _heed_file(self, fd: int, events: int) -> None:
        # what was heeded before may have closed it
        if self._files is not None and any(fd == other for other, _ in self._files.descriptors()):
            self._files.ready(fd, events)

    # ------------------------------------------------------------ mignode

    def _heed_listener(self, _: int, __: int) -> None:
        try:
            sock, _address = self._listener.accept()
        except OSError:  # who came has gone
            return
        _, uid, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        if uid != 0:
            sock.close()
            return
        self._lose_way()
        self._way = BodySocket(sock)
        self._greet()

    def _greet(self) -> None:
        ready = words.Ready(
            self._pid, self._root, self._root_status, self._has_run, self._is_gone, self._is_told, self._is_frozen,
            tuple(self._children.commands), tuple(self._kept),
        )  # fmt: skip
        self._tell(ready, [own_proc.directory])

    def _lose_way(self) -> None:
        if self._way is not None:
            self._way.close()
            self._way = None
            self._alone_since_s = time.monotonic()
            self._set_way(False)

    def _set_way(self, is_open: bool) -> None:
        """Whether frames reach the deputy; said again, they may have been lost in between."""
        self._is_open = is_open
        if self._files is not None:
            (self._files.connected if is_open else self._files.disconnected)()

    def _take_files(self, files: Files) -> None:
        self._files, self._is_frozen = files, False
        if self._is_open:
            files.connected()

    def _tell(self, word: words.Word, descriptors: Iterable[int] = ()) -> None:
        """Where nobody hears it, the next mignode is told by Ready; frames are said again by the files."""
        if self._way is not None:
            try:
                self._way.send(word, tuple(descriptors))
            except OSError:
                self._lose_way()

    def _send_frame(self, frame: bytes) -> None:
        self._tell(words.Frame(frame))

    def _heed_way(self, fd: int, events: int) -> None:
        if self._way is None or self._way.fileno() != fd:
            return  # another has come meanwhile
        try:
            if events & selectors.EVENT_WRITE:
                self._way.flush()
            if events & selectors.EVENT_READ:
                received = self._way.receive()
                if received is None:
                    self._lose_way()
                else:
                    self._heed(*received)
        except BlockingIOError:
            pass
        except (OSError, WireError):
            self._lose_way()

    def _heed(self, word: words.Word, descriptors: list[int]) -> None:
        id_ = getattr(word, "id", 0)
        try:
            answer = self._done(word, descriptors)
        except Exception as error:  # whatever it is: the guest must not pay for it
            answer = _failed(id_, error)
        finally:
            for each in descriptors:
                os.close(each)
        if answer is not None:
            self._tell(*answer if isinstance(answer, tuple) else (answer,))

    def _done(self, word: words.Word, descriptors: list[int]) -> words.Word | tuple[words.Word, list[int]] | None:
        """The answer, with descriptors where it has some; None: there is none, or it comes later."""
        match word:
            case words.Run():
                self._run(word)
            case words.StartCommand():
                self._start(word, descriptors)
            case words.PrepareFiles(id_, plan, state):
                files = self._make_files(plan, self._send_frame, self._act, state, None)
                self._take_files(files)
                inherited = files.inherited()
                return words.FilesNamed(id_, files.external, tuple(inherited)), list(inherited.values())
            case words.NameFiles(id_):
                return words.FilesNamed(id_, self._its_files().external)
            case words.FreezeFiles(id_):
                state = self._its_files().freeze()
                self._is_frozen = True
                return words.FilesFrozen(id_, state)
            case words.Fetch(id_, name):
                return words.Fetched(id_), self._kept.get(name, [])
            case words.Frame() | words.Way() | words.StopRoot() | words.KillCommand() | words.End():
                self._obey(word)
            case _:
                return self._did(word, descriptors)
        return None

    def _obey(self, order: words.Order) -> None:
        match order:
            case words.Frame(data):
                if self._files is not None:
                    self._files.received(data)
            case words.Way(is_open):
                self._set_way(is_open)
            case words.StopRoot():
                if self._files is not None:
                    self._files.deputy_stopped()
            case words.KillCommand(pid):
                self._children.kill_command(pid)
            case words.End():
                _end_all(0)

    def _did(self, word: words.Word, descriptors: list[int]) -> words.Done:
        """Requests whose answer says no more."""
        match word:
            case words.FilesGiven():
                self._its_files().given()
            case words.ThawFiles():
                self._thaw()
            case words.Adopt(_, pid):
                os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)  # ChildProcessError: it is not ours
                self._root, self._is_adopted = pid, True
            case words.Signal(_, pid, number):
                os.kill(pid, number)
            case words.SetLastPid(_, number):
                own_proc.write("sys/kernel/ns_last_pid", b"%d" % number)
            case words.Keep(_, name):
                self._keep(name, descriptors)
            case _:
                raise WireError(f"{type(word).__name__} is not for a guest's init")
        return words.Done(word.id)

    def _its_files(self) -> Files:
        if self._files is None:
            raise OSError(errno.ENOENT, "the guest has no standard files yet")
        return self._files

    def _keep(self, name: str, descriptors: list[int]) -> None:
        for each in self._kept.pop(name, []):
            os.close(each)
        if descriptors:
            self._kept[name] = [os.dup(each) for each in descriptors]

    # ------------------------------------------------------------ children

    def _run(self, asked: words.Run) -> None:
        if self._files is not None:
            raise OSError(errno.EBUSY, "the guest has a program")
        program = asked.program
        files = self._make_files(asked.plan, self._send_frame, self._act, b"", program.owner)
        try:
            self._root = self._children.fork(
                lambda channel: become_program(program, asked.filter, files.guest_ends, files.has_terminal, channel),
                pid=program.pid,
            )
        except OSError:
            files.close()
            raise
        self._born_for[self._root] = asked.id
        self._take_files(files)

    def _start(self, asked: words.StartCommand, descriptors: list[int]) -> None:
        pid = self._children.fork(
            lambda channel: become_command(asked, descriptors, self._node_ipc, channel), is_command=True
        )
        self._born_for[pid] = asked.id

    def _heed_births(self, _: int, __: int) -> None:
        for event in self._children.births():
            self._note(event)

    def _heed_children(self, _: int, __: int) -> None:
        with contextlib.suppress(BlockingIOError):
            self._woken.recv(4096)
        self._tell_stops()
        had_root = self._root > 0 or self._root_status is not None
        for event in self._children.ends():
            self._note(event)
        if had_root and not self._is_gone and self._children.are_none():
            self._is_gone = True
            self._tell(words.Gone())

    def _note(self, event: Event) -> None:
        match event:
            case Born(pid, listener):
                if pid == self._root and self._files is not None:
                    self._files.given()
                    self._has_run = True
                listeners = [listener] if listener >= 0 else []
                if listeners:
                    self._keep(LISTENER, listeners)
                self._tell(words.Started(self._born_for.pop(pid), pid), listeners)
                for each in listeners:
                    os.close(each)
            case NotBorn(pid, error):
                if pid == self._root and self._files is not None:
                    self._files.close()
                    self._files, self._root = None, 0
                self._tell(_failed(self._born_for.pop(pid), error))
            case Ended(pid, status):
                if pid in self._children.commands:
                    self._children.commands.remove(pid)
                    self._has_run |= self._is_adopted and status == 0  # CRIU has let it go
                    self._tell(words.CommandEnded(pid, status))
                elif pid == self._root:
                    self._root, self._root_status = 0, status
                    self._tell(words.RootEnded(status))
                    self._tell_end()

    def _tell_end(self) -> None:
        """To the deputy, once, unless the root may live elsewhere."""
        if self._files is not None and not self._is_frozen and self._root_status is not None and not self._is_end_told:
            self._is_end_told = True
            self._files.ended(self._root_status)

    def _tell_stops(self) -> None:
        if not self._root or self._files is None or self._is_frozen:
            return
        for event in self._children.stops(self._root):
            match event:
                case Stopped(number):
                    self._files.stopped(number)
                case Continued():
                    self._files.continued()

    def _thaw(self) -> None:
        """The migration failed: what has happened meanwhile is told now."""
        self._its_files().thaw()
        self._is_frozen = False
        self._tell_end()
        self._tell_stops()


def _failed(id_: int, error: BaseException) -> words.Failed:
    if isinstance(error, OSError) and error.errno:
        where = f"{error.filename}: " if error.filename else ""
        return words.Failed(id_, error.errno, f"{where}{error.strerror}")
    return words.Failed(id_, errno.EIO, repr(error))
