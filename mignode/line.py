"""A line: one conversation between two mignodes, with both ends checked before the first word.

`dial_line` connects and says who we are, `serve_lines` listens, checks who comes, and gives each line to the handler
with its first word.  Connections, TLS and frames are those of the file system (omfs/net); who fits together is decided
as there (hello.py), and whoever does not is told why.

Every wait has a deadline.  A line that is silent is kept alive by StillHere (`keep_alive`), so silence means that the
other node, or the way to it, is gone.  Any task may send; one receives.  Faults are OSErrors (a lost line, and
TimeoutError), HelloRefused (we do not fit together), WireError (it does not speak our language): all end the line.
What it does not do: know what is said.  Called by migrate, receive and the links.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
import ssl
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeAlias, get_args

import msgspec
import trio

from mignode import words
from mignode.words import FirstWord, Greet, Greeted, NotWelcome, StillHere, Word
from omfs import wire
from omfs.config import Settings
from omfs.errors import HelloRefused, NodeDown, WireError
from omfs.net import sockets, transport
from omfs.net.accepting import Entrance, Stranger, listen, tls_reason
from omfs.net.channel import Bulk, Channel
from omfs.net.frames import Buffer
from omfs.net.hello import SESSION_KEY_BYTES, LocalNode, check_certificate, check_hello, hello_to
from omfs.net.pair import tls_reason as dialled_tls_reason
from omfs.net.tls import peer_node_id
from omfs.net.transport import Transport
from omfs.standing import Standing

GREET_TIMEOUT_S: Final = 5.0  # TLS and two messages
STRANGERS_MAX: Final = 64  # lines that have not greeted yet; there is about one per guest
ALIVE_INTERVAL_S: Final = 5.0
_FIRST_WORDS: Final = get_args(FirstWord)
_REASON_MAX: Final = 500

Dial: TypeAlias = Callable[[str, int, ssl.SSLContext | None, float], Awaitable[Transport]]
Heard: TypeAlias = tuple[Word, Buffer]

log = logging.getLogger(__name__)
_decoder = msgspec.msgpack.Decoder(Word)


def decode_word(meta: memoryview) -> wire.Message:
    """For a FrameReader.  Raises msgspec's errors."""
    word: wire.Message = _decoder.decode(meta)
    return word


class Line:
    """One end.  *node_id*: who is at the other, by its certificate where there is one."""

    def __init__(self, transport: Transport) -> None:
        self.node_id = 0
        self.name = transport.name
        self._channel = Channel(transport, decode=decode_word)
        self._heard: deque[Heard] = deque()

    @property
    def bytes_in(self) -> int:
        return self._channel.bytes_in

    @property
    def bytes_out(self) -> int:
        return self._channel.bytes_out

    async def send(self, word: Word, bulk: Bulk = b"", *, deadline_s: float) -> None:
        """When it returns the word is on its way.  Raises OSError, TimeoutError, WireError (too large)."""
        try:
            with trio.fail_after(deadline_s):
                await self._channel.request(0, word, bulk)
        except trio.TooSlowError:
            self.close()
            raise TimeoutError(errno.ETIMEDOUT, f"{self.name} took nothing for {deadline_s:g} s") from None
        except OSError:
            self.close()
            raise

    async def receive(self, deadline_s: float) -> Heard:
        """The next word and its bulk data.

        *deadline_s*: for silence, which StillHere breaks; when it passes the line is closed.  Raises OSError,
        TimeoutError, WireError.
        """
        while not self._heard:
            try:
                with trio.fail_after(deadline_s):
                    frames = await self._channel.receive()
            except trio.TooSlowError:
                self.close()
                raise TimeoutError(errno.ETIMEDOUT, f"nothing from {self.name} for {deadline_s:g} s") from None
            except (OSError, WireError):
                self.close()
                raise
            for frame_id, message, bulk in frames:
                if frame_id or len(bulk) > words.BULK_MAX.get(type(message), 0):
                    self.close()
                    raise WireError(f"a {type(message).__name__} as no line has it: id {frame_id}, {len(bulk)} bytes")
                if not isinstance(message, StillHere):
                    self._heard.append((message, bulk))  # type: ignore[arg-type]
        return self._heard.popleft()

    async def keep_alive(self) -> None:
        """For a task beside those that work with the line; until the line is lost or it is cancelled."""
        with contextlib.suppress(OSError):
            while True:
                await trio.sleep(ALIVE_INTERVAL_S)
                await self.send(StillHere(), deadline_s=ALIVE_INTERVAL_S * 3)

    def admit(self) -> None:
        """The other end is known now: frames of full size."""
        self._channel.admit(wire.Lane.BULK)

    def close(self) -> None:
        """Whoever sends or receives gets an OSError."""
        self._channel.close("the line was closed")

    @property
    def is_authenticated(self) -> bool:
        """TLS: every byte that comes is one that the other end sent."""
        return self._channel.transport.certificate is not None

    @property
    def certified_node_id(self) -> int | None:
        """None without TLS."""
        certificate = self._channel.transport.certificate
        return None if certificate is None else peer_node_id(certificate)


# ---------------------------------------------------------------- connecting


async def dial_line(
    standing: Standing, settings: Settings, node_id: int, deadline_s: float, dial: Dial = transport.dial
) -> Line:
    """A line to *node_id*, by the first of its addresses that answers.

    *deadline_s* holds for all addresses together.  Raises NodeDown where none answers, HelloRefused where it does and
    we do not fit together.
    """
    addresses: Sequence[str] = standing.node_map.nodes.get(node_id, ())
    fault = "it is not in the map"
    with trio.move_on_after(deadline_s):
        for address in addresses:
            try:
                return await _dial(standing, settings, node_id, address, dial)
            except (OSError, WireError) as error:
                fault = str(error) or type(error).__name__
        raise NodeDown(f"node {node_id}: {fault}")
    raise NodeDown(f"node {node_id}: no answer within {deadline_s:g} s")


async def _dial(standing: Standing, settings: Settings, node_id: int, address: str, dial: Dial) -> Line:
    try:
        made = await dial(address, settings.migration_port, standing.identity.client_context, settings.timeo_s)
    except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
        raise ConnectionResetError("it closed the connection before it answered (is its sec= the same?)") from None
    except ssl.SSLError as error:
        raise HelloRefused(f"node {node_id}: TLS: {dialled_tls_reason(error)}") from None
    line = Line(made)
    try:
        check_certificate(line.certified_node_id, node_id)
        local = standing.local
        greet = Greet(words.VERSION, local.software, local.node_id, node_id, local.dfsa, local.map_digest)
        await line.send(greet, deadline_s=GREET_TIMEOUT_S)
        answer, _ = await line.receive(GREET_TIMEOUT_S)
        match answer:
            case Greeted(version=words.VERSION, node_id=found) if found == node_id:
                line.node_id = node_id
                line.admit()
                return line
            case NotWelcome(reason=reason):
                raise HelloRefused(reason)
            case _:
                raise HelloRefused(f"node {node_id} answered our greeting with {type(answer).__name__}")
    except ssl.SSLError as error:
        line.close()
        raise HelloRefused(f"node {node_id}: TLS: {dialled_tls_reason(error)}") from None
    except BaseException:
        line.close()
        raise


# ---------------------------------------------------------------- being connected to

Handler: TypeAlias = Callable[[Line, FirstWord, Buffer], Awaitable[None]]
"""Has the line until it returns or raises; then it is closed.  An OSError, WireError or HelloRefused is the line's end;
anything else is logged as an error of ours and disturbs no other line."""


async def serve_lines(
    standing: Standing, settings: Settings, handler: Handler, *, task_status: trio.TaskStatus[int]
) -> None:
    """Listen on all addresses, until cancelled; starts with the port.  Raises OSError where it can't listen."""
    listener = listen("", settings.migration_port)
    try:
        async with trio.open_nursery() as nursery:
            task_status.started(listener.getsockname()[1])
            door = _Door(standing, settings, handler)

            def let_in(sock: socket.socket, name: str, stranger: Stranger) -> None:
                nursery.start_soon(door.serve_socket, sock, name, stranger)

            await Entrance().accept(listener, STRANGERS_MAX, let_in)
    finally:
        listener.close()


class _Door:
    """Lets in who fits, and gives the line to the handler."""

    def __init__(self, standing: Standing, settings: Settings, handler: Handler) -> None:
        self._standing = standing
        self._settings = settings
        self._handler = handler

    async def serve_socket(self, sock: socket.socket, name: str, stranger: Stranger) -> None:
        """Never raises but Cancelled."""
        line: Line | None = None
        word: Word | None = None
        try:
            with trio.move_on_after(GREET_TIMEOUT_S):
                sockets.tune(sock, self._settings.timeo_s)
                context = self._standing.identity.server_context
                if context is not None:
                    line = Line(await sockets.wait_tls(sock, name, context, server_side=True))
                else:
                    line = Line(sockets.SocketTransport(sock, name))
                await self._wait_greeting(line)
                word, bulk = await line.receive(GREET_TIMEOUT_S)
            stranger.leave()
            if line is None or word is None:
                raise TimeoutError(errno.ETIMEDOUT, f"said nothing for {GREET_TIMEOUT_S:g} s")
            if not isinstance(word, _FIRST_WORDS):
                raise WireError(f"began with {type(word).__name__}")
            await self._handler(line, word, bulk)
        except ssl.SSLError as error:
            log.warning("%s: TLS: %s", name, tls_reason(error))
        except (WireError, HelloRefused) as error:
            log.warning("%s: %s; line closed", name, error)
        except OSError as error:
            log.info("%s: line lost: %s", name, error)
        except Exception:
            log.exception("%s: line closed by an error of ours", name)
        finally:
            stranger.leave()
            if line is not None:
                line.close()
            sock.close()

    async def _wait_greeting(self, line: Line) -> None:
        """Raises HelloRefused, after telling the other side."""
        greet, _ = await line.receive(GREET_TIMEOUT_S)
        if not isinstance(greet, Greet):
            raise WireError(f"began with {type(greet).__name__} instead of a greeting")
        local = self._standing.local
        try:
            self._check(greet, line.certified_node_id)
        except HelloRefused as error:
            await line.send(NotWelcome(str(error)[:_REASON_MAX]), deadline_s=GREET_TIMEOUT_S)
            raise
        line.node_id = greet.node_id
        line.name = f"node {greet.node_id} ({line.name})"
        line.admit()
        await line.send(Greeted(words.VERSION, local.software, local.node_id), deadline_s=GREET_TIMEOUT_S)

    def _check(self, greet: Greet, certified_node_id: int | None) -> None:
        local = self._standing.local
        if greet.version != words.VERSION:
            raise HelloRefused(
                f"node {local.node_id} ({local.software}) migrates by protocol {words.VERSION}, node {greet.node_id} "
                f"({greet.software[:64]!r}) by {greet.version}: install the same version on both"
            )
        said = LocalNode(greet.node_id, greet.dfsa, greet.map_digest, greet.software)
        hello = hello_to(said, greet.wanted_node_id, bytes(SESSION_KEY_BYTES), wire.Lane.SMALL)
        check_hello(hello, local, certified_node_id)
        if greet.node_id not in self._standing.node_map.nodes:
            raise HelloRefused(f"node {greet.node_id} is not in the map of node {local.node_id}")
