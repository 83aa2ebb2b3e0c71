"""A mignode and a guest's init in one process, for a mosrun: it runs what it is asked to, without namespaces.

    python -m tests.unit.fakeinit SOCKET SECONDS_BETWEEN_FREEZES FRAMES_BETWEEN_CUTS

It leads a session, as an init does.  Now and then it freezes the program (SIGSTOP), freezes the standard files and
thaws both; and cuts the connection to mosrun, with whatever was on its way.  It ends when mosrun does, and kills the
program.
"""

from __future__ import annotations

import os
import random
import select
import selectors
import signal
import socket
import sys
import time

from mignode import deputywords as words
from mignode.bodyfiles import BodyFiles
from mignode.deputywords import REQUEST_MAX_BYTES, Words
from mignode.guestterminal import enter_foreground

GUEST = "1.2.3"


class FakeInit:
    """One guest."""

    def __init__(self, path: str, freeze_each_s: float, cut_each: int) -> None:
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(f"{path}.new")
        self.listener.listen()
        os.rename(f"{path}.new", path)  # who sees it can connect
        self.freeze_each_s, self.cut_each = freeze_each_s, cut_each
        self.line: socket.socket | None = None
        self.words = Words(REQUEST_MAX_BYTES)
        self.to_send = bytearray()
        self.files: BodyFiles | None = None
        self.root = 0
        self.has_ended = False
        self.frames = 0
        self.freeze_at = time.monotonic() + freeze_each_s
        self.wake, wakeup = os.pipe()
        os.set_blocking(wakeup, False)
        signal.set_wakeup_fd(wakeup)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.signal(signal.SIGUSR1, lambda number, frame: self.lose())

    # ---- what BodyFiles asks

    def signal(self, number: int, group: bool) -> None:
        if not self.has_ended:
            assert self.files is not None
            terminal = self.files._terminal
            target = terminal.foreground() if terminal else self.root
            os.killpg(target, number) if group else os.kill(self.root, number)

    def send(self, frame: bytes) -> None:
        if self.line:
            self.frames += 1
            if self.cut_each and self.frames % self.cut_each == 0:
                self.cut()
                return
            self.to_send += words.pack(words.Relayed(frame))

    def cut(self) -> None:
        assert self.line is not None
        if random.random() < 0.5:
            self.to_send.clear()
        self.line.close()
        self.line = None

    # ---- the program

    def run(self, asked: words.Run) -> int:
        """The errno, 0 for none."""
        self.files = BodyFiles(asked.plan, self.send, self)
        reader, writer = os.pipe()
        self.root = os.fork()
        if self.root == 0:
            try:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                signal.signal(signal.SIGPIPE, signal.SIG_DFL)
                os.setpgid(0, 0)
                ends = {number: os.dup(end) for number, end in self.files.guest_ends.items()}
                for number in (0, 1, 2):
                    if number in ends:
                        os.dup2(ends[number], number)
                    else:
                        os.close(number)
                if self.files.has_terminal:
                    enter_foreground(next(number for number in ends if os.isatty(number)))
                writer = os.dup2(writer, 200, inheritable=False)
                os.closerange(3, 200)
                os.chdir(asked.directory)
                os.execvpe(asked.program, asked.arguments, dict(pair.split(b"=", 1) for pair in asked.environment))
            except OSError as error:
                os.write(writer, str(error.errno).encode())
            finally:
                os._exit(127)
        os.close(writer)
        number = int(os.read(reader, 10) or b"0")
        os.close(reader)
        self.files.given()
        return number

    def reap(self) -> None:
        os.read(self.wake, 1000)
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED | os.WCONTINUED)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid != self.root or self.files is None or self.is_frozen:
                continue
            if os.WIFSTOPPED(status):
                self.files.stopped(os.WSTOPSIG(status))
            elif os.WIFCONTINUED(status):
                self.files.continued()
            else:
                self.has_ended = True
                self.files.ended(status)

    is_frozen = False

    def freeze(self) -> None:
        """As a migration that fails at its end."""
        self.freeze_at = time.monotonic() + self.freeze_each_s
        if self.has_ended or self.files is None:
            return
        self.is_frozen = True
        os.kill(self.root, signal.SIGSTOP)
        _, status = os.waitpid(self.root, os.WUNTRACED)
        if os.WIFSTOPPED(status):
            self.files.freeze()
            self.files.thaw()
            os.kill(self.root, signal.SIGCONT)
            _, status = os.waitpid(self.root, os.WCONTINUED)
        self.is_frozen = False
        if not os.WIFCONTINUED(status):  # it came to its end first
            self.has_ended = True
            self.files.ended(status)

    # ---- the loop

    def serve(self) -> None:
        while True:
            wanted = dict(self.files.descriptors()) if self.files else {}
            poll = select.poll()
            poll.register(self.listener, select.POLLIN)
            poll.register(self.wake, select.POLLIN)
            for fd, events in wanted.items():
                read, write = events & selectors.EVENT_READ, events & selectors.EVENT_WRITE
                poll.register(fd, (select.POLLIN if read else 0) | (select.POLLOUT if write else 0))
            line = self.line
            if line:
                poll.register(line, select.POLLIN | (select.POLLOUT if self.to_send else 0))
            wait = max(0.0, self.freeze_at - time.monotonic()) * 1000 if self.freeze_each_s else None
            for fd, found in poll.poll(wait):
                if fd == self.listener.fileno():
                    self.accept()
                elif fd == self.wake:
                    self.reap()
                elif line and fd == line.fileno():
                    if line is self.line:
                        self.exchange(line, found)
                elif self.files and fd in wanted:
                    found_events = (1 if found & ~select.POLLOUT else 0) | (2 if found & ~select.POLLIN else 0)
                    self.files.ready(fd, found_events & wanted[fd])
            if self.files and self.line is None:
                self.files.disconnected()
            if self.freeze_each_s and time.monotonic() >= self.freeze_at:
                self.freeze()

    def accept(self) -> None:
        self.line, _ = self.listener.accept()
        self.words = Words(REQUEST_MAX_BYTES)
        self.to_send.clear()

    def exchange(self, line: socket.socket, found: int) -> None:
        if found & select.POLLOUT:
            del self.to_send[: line.send(self.to_send)]
        if found & ~select.POLLOUT:
            try:
                data = line.recv(1 << 18)
            except ConnectionResetError:
                data = b""
            if not data:
                self.end()
            for word in self.words.arrived(data):
                self.obey(line, word)

    def obey(self, line: socket.socket, word: words.DeputyWord) -> None:
        if line is not self.line:
            return  # cut meanwhile
        if isinstance(word, words.Run):
            if number := self.run(word):
                line.sendall(words.pack(words.Refused(number, os.strerror(number), True)))
                sys.exit(0)
            self.to_send += words.pack(words.Started(GUEST))
            assert self.files is not None
            self.files.connected()
        elif isinstance(word, words.Attend):
            assert word.guest == GUEST
            assert self.files is not None
            self.to_send += words.pack(words.Attended())
            self.files.connected()
        else:
            assert isinstance(word, words.Relayed)
            assert self.files is not None
            self.files.received(word.frame)

    def lose(self) -> None:
        """As if the node where the program runs were gone."""
        os.kill(self.root, signal.SIGKILL)
        self.has_ended = True
        assert self.line is not None
        self.line.sendall(words.pack(words.Lost("its node is gone")))

    def end(self) -> None:
        """mosrun has ended."""
        if self.root and not self.has_ended:
            os.killpg(self.root, signal.SIGKILL)
        sys.exit(0)


if __name__ == "__main__":
    os.setsid() if os.getsid(0) != os.getpid() else None
    FakeInit(sys.argv[1], float(sys.argv[2]), int(sys.argv[3])).serve()
