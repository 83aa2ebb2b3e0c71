"""The link of a guest that is away: a line between the node where it runs and its home, kept up as long as it is there.

`LinkHome` is the end where the guest runs: it connects, says that the guest runs here (which home agrees to, or it is
ended), and connects again whenever the line is lost; when home has been silent for guest_timeout_s, the guest is ended,
as it would have ended with its home.  When the guest has ended, it goes on until home knows; when it has left, until
its orders are answered.  While the guest is on its way to another node (`departing`) the link decides nothing: whoever
moves it asks home.

`LinkAway` is home's end, made for each line that comes.  Frames that are lost with a line are said again (relay.py);
calls, questions and orders under way fail.

Called by guesthouse.py.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from mignode import guestsettings
from mignode.deputies import Deputy, Report
from mignode.desk import Desk
from mignode.guest import Guest, HomeWay
from mignode.guestsettings import GuestSettings
from mignode.handover import Coming, Destination
from mignode.journey import Journey, told, understood
from mignode.line import Line, dial_line
from mignode.linkends import Answers, Speaker, answer_told
from mignode.transit import ASK_AGAIN_S, CONNECT_S, REASON_MAX, SILENCE_S, expect
from mignode.words import (
    AskSetting,
    Attend,
    ChangeSetting,
    DeputyLost,
    DeputyStopped,
    DeputyThere,
    Ended,
    HomeCall,
    HomeCalled,
    Located,
    Moved,
    MoveTo,
    NotMoved,
    OnTheWay,
    RelayFrame,
    Told,
    Why,
    WhyThere,
    Word,
)
from omfs.config import HOME_CALL_TIMEOUT_S, Settings
from omfs.errors import HandoverRefused, NodeDown, OmfsError, RemoteFailure, WireError
from omfs.magic.controlfiles import Value
from omfs.standing import Standing

_UNORDERED: Final = 0  # a number that no order has
log: Final = logging.getLogger(__name__)

Move = Callable[[Guest, int, Report], Awaitable[None]]
WhyText = Callable[[Guest, bool], Awaitable[str]]
Selected = Callable[[Guest, int | None], Awaitable[int]]


# ---------------------------------------------------------------- where the guest runs


def _nothing_decided(_: Guest) -> str:
    return ""


async def _nothing_selected(_: Guest, node: int | None) -> int:
    return node or 0


class LinkHome:
    """Of one guest that runs here and is at home elsewhere."""

    def __init__(
        self, guest: Guest, standing: Standing, settings: Settings, move: Move, why: WhyText,
        why_there: Callable[[Guest], str] = _nothing_decided, selected: Selected = _nothing_selected,
    ) -> None:  # fmt: skip
        self._guest = guest
        self._standing = standing
        self._settings = settings
        self._move = move
        self._why = why
        self._why_there = why_there
        self._selected = selected
        self._has_way = trio.Event()
        self._orders: set[int] = set()
        self._obeyed = trio.Event()
        self._coming = Destination.staying(standing.local.node_id, guest.epoch)
        self._speaker: Speaker | None = None
        self._answers = Answers()
        self._end: Ended | None = None

    async def run(self) -> None:
        """Until home says that the guest is not here, or home is lost: then nothing of it is; or until it has left."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._wait_left, nursery.cancel_scope)
            await self._keep_up()
            if not self._has_left:
                with trio.CancelScope(shield=True):
                    self._guest.has_departed = True
                    await self._guest.body.end()
                    self._guest.folder.leave()
            nursery.cancel_scope.cancel()

    @property
    def _has_left(self) -> bool:
        """What its folder is then is no more ours to say: it may be on its way back."""
        return self._guest.is_over.is_set() and self._end is None

    async def _wait_left(self, running: trio.CancelScope) -> None:
        """And until what is still to be said is, for a while; its end until home knows."""
        await self._guest.is_over.wait()
        with trio.move_on_after(SILENCE_S):
            await self._guest.wait_settled()
            while self._orders:
                self._obeyed = trio.Event()
                await self._obeyed.wait()
        if self._end is not None:
            self._say_end()
            return
        with trio.move_on_after(SILENCE_S):
            if self._speaker is not None:
                await self._speaker.wait_said()
        running.cancel()

    def _say_end(self) -> None:
        if self._speaker is not None and self._end is not None:
            self._speaker.say(self._end)

    async def _keep_up(self) -> None:
        heard_s = trio.current_time()
        while self._coming.state is Coming.RUNNING and not self._has_left:
            if self._guest.is_departing:
                heard_s = trio.current_time()
                await trio.sleep(ASK_AGAIN_S)
                continue
            if self._coming.attempt != self._guest.epoch:  # it had left, and was given back
                self._coming = Destination.staying(self._standing.local.node_id, self._guest.epoch)
            try:
                await self._attend()
                heard_s = trio.current_time()
            except OmfsError as error:
                log.debug("the link of %s: %s", self._guest.name, error)
            self._check_silence(heard_s)
            if self._coming.state is Coming.RUNNING:
                await trio.sleep(ASK_AGAIN_S)

    def _check_silence(self, heard_s: float) -> None:
        timeout_s = self._settings.guest_timeout_s
        if self._guest.is_departing or self._coming.state is not Coming.RUNNING:
            return
        if trio.current_time() - heard_s > timeout_s:
            log.warning("guest %s is ended: its home was silent for %.0f s", self._guest.name, timeout_s)
            self._coming.home_lost()

    async def _attend(self) -> None:
        """One line, as long as it lasts.  Raises OmfsError where there was none."""
        line = await dial_line(self._standing, self._settings, self._guest.traits.home, CONNECT_S)
        try:
            await line.send(Attend(self._guest.name, self._guest.epoch), deadline_s=CONNECT_S)
            word, _ = await line.receive(CONNECT_S)
            answer = expect(line, word, Located)
            if not self._guest.is_departing:
                self._coming.located(answer)
            if self._coming.state is Coming.RUNNING:
                await self._serve(line)
        except (OSError, WireError) as error:
            raise NodeDown(str(error)) from None
        finally:
            line.close()

    async def _serve(self, line: Line) -> None:
        self._speaker = Speaker(line)
        self._has_way.set()
        self._say_end()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._speaker.run)
                nursery.start_soon(line.keep_alive)
                try:
                    while True:
                        self._heed(*await line.receive(SILENCE_S), nursery)
                except (OSError, WireError) as error:
                    log.info("the link of %s: %s", self._guest.name, error)
                    nursery.cancel_scope.cancel()
        finally:
            self._speaker = None
            self._has_way = trio.Event()
            self._answers.lose()
            self._guest.meet(None)

    def _heed(self, word: Word, bulk: object, nursery: trio.Nursery) -> None:
        match word:
            case RelayFrame():
                self._guest.send_frame(bytes(bulk))  # type: ignore[call-overload]
            case DeputyThere(is_there):
                self._guest.meet(self if is_there else None)
            case DeputyLost():
                self._guest.deputy_lost()
            case DeputyStopped():
                self._guest.deputy_stopped()
            case MoveTo():
                nursery.start_soon(self._obey, word)
            case HomeCalled(number) | Told(number):
                self._answers.take(number, word)
            case Why():
                nursery.start_soon(self._tell_why, word)
            case WhyThere(number):
                nursery.start_soon(self._tell_why_there, number)
            case AskSetting() | ChangeSetting():
                nursery.start_soon(self._tell_selected, word)
            case Located():
                if not self._guest.is_departing:
                    self._coming.located(word)
                raise WireError("home does not have the guest here any more")
            case _:
                raise WireError(f"home says {type(word).__name__}")

    async def _obey(self, order: MoveTo) -> None:
        def report(journey: Journey) -> None:
            if self._speaker is not None:
                self._speaker.say(OnTheWay(order.order, told(journey)))

        answer: Moved | NotMoved = Moved(order.order)
        self._orders.add(order.order)
        try:
            await self._move(self._guest, order.destination, report)
        except (OmfsError, OSError) as error:
            log.info("guest %s stays: %s", self._guest.name, error)
            answer = NotMoved(order.order, error.errno or errno.EIO, str(error)[:REASON_MAX])
        finally:
            self._orders.remove(order.order)
            self._obeyed.set()
        if self._speaker is not None:
            self._speaker.say(answer)

    async def _tell_why(self, asked: Why) -> None:
        try:
            answer = Told(asked.number, 0, await self._why(self._guest, asked.is_brief))
        except (OmfsError, OSError) as error:
            answer = Told(asked.number, error.errno or errno.EIO, str(error)[:REASON_MAX])
        if self._speaker is not None:
            self._speaker.say(answer)

    async def _tell_why_there(self, number: int) -> None:
        if self._speaker is not None:
            self._speaker.say(Told(number, 0, self._why_there(self._guest)))

    async def _tell_selected(self, asked: AskSetting | ChangeSetting) -> None:
        """The one setting that is not home's to keep."""
        try:
            node = guestsettings.selected_in(asked.text) if isinstance(asked, ChangeSetting) else None
            if asked.name != guestsettings.SELECTED:
                raise RemoteFailure(errno.EINVAL, f"home asks for {asked.name}")
            answer = Told(asked.number, 0, str(await self._selected(self._guest, node)))
        except (OmfsError, OSError) as error:
            answer = Told(asked.number, error.errno or errno.EIO, str(error)[:REASON_MAX])
        if self._speaker is not None:
            self._speaker.say(answer)

    async def ask_setting(self, name: str) -> Value:
        """What home says of it."""
        text = await self._ask_home(lambda number: AskSetting(number, name))
        try:
            return guestsettings.understood(name, text)
        except ValueError as error:
            raise WireError(f"home says of {name}: {error}") from None

    async def change_setting(self, name: str, value: Value) -> None:
        """Set when this returns."""
        text = guestsettings.spelled(name, value)
        await self._ask_home(lambda number: ChangeSetting(number, name, text))

    def tell_journey(self, journey: Journey) -> None:
        """Of a move that home has not ordered."""
        if self._speaker is not None:
            self._speaker.say(OnTheWay(_UNORDERED, told(journey)))

    async def _ask_home(self, question: Callable[[int], AskSetting | ChangeSetting]) -> str:
        with trio.move_on_after(HOME_CALL_TIMEOUT_S):  # it may have come just now, and be looking for its way
            await self._has_way.wait()
        if self._speaker is None:
            raise NodeDown("there is no way home")
        number = self._answers.ask()
        self._speaker.say(question(number))
        return await answer_told(self._answers, number)

    def send_frame(self, frame: bytes) -> None:
        """To the deputy."""
        if self._speaker is not None:
            self._speaker.say(RelayFrame(), frame)

    async def ask(self, process: int, call: str, arguments: tuple[int, ...]) -> int:
        """A call that home does."""
        if self._speaker is None:
            raise NodeDown("there is no way home")
        number = self._answers.ask()
        self._speaker.say(HomeCall(number, process, call, arguments))
        with trio.fail_after(HOME_CALL_TIMEOUT_S):
            called = await self._answers.wait(number)
        assert isinstance(called, HomeCalled)
        if called.errno:
            raise OSError(called.errno, call)
        return called.value

    def tell_end(self, status: int) -> None:
        """All of it has ended; END_UNKNOWN: its init was killed.  Home is told when the guest is over."""
        self._end = Ended(self._guest.epoch, status)


# ---------------------------------------------------------------- its home


class LinkAway:
    """One line from the node where the guest runs; a deputies.BodyWay."""

    def __init__(self, line: Line, deputy: Deputy, settings: GuestSettings, note: Report) -> None:
        """*note*: gets the journeys that home has not ordered."""
        self.node_id = line.node_id
        self._note = note
        self._settings = settings
        self._line = line
        self._deputy = deputy
        self._speaker = Speaker(line)
        self._answers = Answers()
        self._reports: dict[int, Report] = {}
        self.end_status: int | None = None

    async def serve(self) -> None:
        """Until the line is lost, or the guest has ended."""
        self._deputy.found(self)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._speaker.run)
                nursery.start_soon(self._line.keep_alive)
                try:
                    while self.end_status is None:
                        self._heed(*await self._line.receive(SILENCE_S), nursery)
                except (OSError, WireError) as error:
                    log.info("the link of %s: %s", self._deputy.traits.name, error)
                nursery.cancel_scope.cancel()
        finally:
            self._answers.lose()
            self._deputy.lost(self)

    def _heed(self, word: Word, bulk: object, nursery: trio.Nursery) -> None:
        match word:
            case RelayFrame():
                self._deputy.send_frame(bytes(bulk))  # type: ignore[call-overload]
            case HomeCall():
                nursery.start_soon(self._call, word)
            case Moved(number) | NotMoved(number) | Told(number):
                self._answers.take(number, word)
            case AskSetting() | ChangeSetting():
                nursery.start_soon(self._tell_setting, word)
            case OnTheWay(order, text):
                journey = understood(text)
                report = self._note if order == _UNORDERED else self._reports.get(order)
                if journey is not None and report is not None:
                    report(journey)
            case Ended(status=status):
                self.end_status = status
            case _:
                raise WireError(f"the guest's node says {type(word).__name__}")

    async def _call(self, call: HomeCall) -> None:
        value = number = 0
        try:
            with trio.fail_after(HOME_CALL_TIMEOUT_S):
                value = await self._deputy.ask(call.process, call.call, call.arguments)
        except trio.TooSlowError:
            number = errno.EHOSTDOWN
        except (OSError, OmfsError) as error:
            number = error.errno or errno.EIO
        self._speaker.say(HomeCalled(call.number, value, number))

    async def _tell_setting(self, asked: AskSetting | ChangeSetting) -> None:
        number, text, name = 0, "", asked.name
        try:
            if isinstance(asked, ChangeSetting):
                await self._settings.change(self._deputy.traits, name, guestsettings.understood(name, asked.text))
            elif name in guestsettings.OF_GUEST:
                text = guestsettings.spelled(name, self._settings.read(self._deputy.traits, name))
        except ValueError as error:
            number, text = errno.EINVAL, str(error)[:REASON_MAX]
        except (OmfsError, OSError) as error:
            number, text = error.errno or errno.EIO, str(error)[:REASON_MAX]
        self._speaker.say(Told(asked.number, number, text))

    async def why(self, is_brief: bool) -> str:
        """Why it can't move, as the node where it runs finds."""
        number = self._answers.ask()
        self._speaker.say(Why(number, is_brief))
        return await answer_told(self._answers, number)

    async def why_there(self) -> str:
        """As the node where it runs has decided."""
        number = self._answers.ask()
        self._speaker.say(WhyThere(number))
        return await answer_told(self._answers, number)

    async def selected(self, node: int | None) -> int:
        """The root's, where it runs."""
        number, name = self._answers.ask(), guestsettings.SELECTED
        self._speaker.say(AskSetting(number, name) if node is None else ChangeSetting(number, name, str(node)))
        return guestsettings.selected_in(await answer_told(self._answers, number))

    def send_frame(self, frame: bytes) -> None:
        """From mosrun."""
        self._speaker.say(RelayFrame(), frame)

    def meet(self, home: HomeWay | None) -> None:
        """Whether mosrun hears what is said."""
        self._speaker.say(DeputyThere(home is not None))

    def deputy_lost(self) -> None:
        """mosrun is no more."""
        self._speaker.say(DeputyLost())

    def deputy_stopped(self) -> None:
        """mosrun is."""
        self._speaker.say(DeputyStopped())

    async def move(self, destination: int, report: Report) -> None:
        """Raises OmfsError where it stays, NodeDown where nobody can say."""
        number = self._answers.ask()
        self._reports[number] = report
        self._speaker.say(MoveTo(number, destination))
        try:
            answer = await self._answers.wait(number)
        finally:
            del self._reports[number]
        if isinstance(answer, NotMoved):
            if answer.errno == HandoverRefused.errno:
                raise HandoverRefused(answer.reason)
            raise RemoteFailure(answer.errno, answer.reason)


async def attend(
    line: Line, word: Attend, desk: Desk, deputy: Deputy | None, settings: GuestSettings, note: Report
) -> int | None:
    """A line that a guest's node has brought; how the guest has ended when it is over, None where it has not."""
    answer = desk.answer(line.node_id, word)
    await line.send(answer, deadline_s=CONNECT_S)
    is_there = isinstance(answer, Located) and (answer.node, answer.epoch) == (line.node_id, word.epoch)
    if deputy is None or not is_there:
        return None
    link = LinkAway(line, deputy, settings, note)
    await link.serve()
    return link.end_status
