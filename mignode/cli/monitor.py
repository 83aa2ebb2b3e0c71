"""mosmon's screen: textual around the pictures of loadbars.py.

A thread of its own reads, once a second, and posts what it read: where the mount is silent the keys go on working, and
leaving does not wait for it.  Called by mosmon.py.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import ClassVar, Final

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.events import Resize
from textual.message import Message
from textual.widgets import Static

from mignode.loadbars import QUANTITIES, Layout, Line, Sample, View, chosen, fitting, parse, picture, totals

EVERY_S: Final = 1.0
STYLES: Final = {"": "", "bar": "green", "high": "red", "whole": "bright_black", "dead": "red", "label": ""}
SILENT: Final = "mignode does not answer; what is shown is old"


class Told(Message):
    """What was read; nothing where it could not be."""

    def __init__(self, samples: Sequence[Sample] | None, yardstick: str) -> None:
        super().__init__()
        self.samples = samples
        self.yardstick = yardstick


class Monitor(App[None]):
    """*read*: the text of a file below hpc/, or OSError."""

    ENABLE_COMMAND_PALETTE = False
    CSS = "#bars { height: 1fr; } #foot { height: 1; }"
    BINDINGS: ClassVar[list[BindingType]] = [
        *(Binding(key, f"show('{key}')") for key in QUANTITIES),
        *(Binding(layout.value, f"lay_out('{layout.value}')") for layout in Layout),
        Binding("d", "toggle_dead"), Binding("t", "toggle_foot('totals')"), Binding("y", "toggle_foot('yardstick')"),
        Binding("right,n", "scroll_by(1)"), Binding("left,p", "scroll_by(-1)"),
        Binding("down,pagedown", "scroll_page(1)"), Binding("up,pageup", "scroll_page(-1)"),
        Binding("h,question_mark", "toggle_help"), Binding("q,Q,ctrl+c", "quit"),
    ]  # fmt: skip

    def __init__(self, read: Callable[[str], str], samples: Sequence[Sample], quantity: str, keys: str) -> None:
        super().__init__()
        self._read = read
        self._samples = samples
        self._view = View(quantity)
        self._keys = keys
        self._yardstick = ""
        self._is_silent = False
        self._feet: set[str] = set()
        self._shows_help = False
        self._is_over = threading.Event()

    def compose(self) -> ComposeResult:
        yield Static(id="bars")
        yield Static(id="foot")

    def on_mount(self) -> None:
        threading.Thread(target=self._keep_reading, daemon=True).start()

    def on_unmount(self) -> None:
        self._is_over.set()

    def _keep_reading(self) -> None:
        while not self._is_over.wait(EVERY_S):
            try:
                told = Told(parse(self._read("info")), self._read("admin/sspeed"))
            except OSError:
                told = Told(None, "")
            self.post_message(told)

    def on_told(self, told: Told) -> None:
        self._is_silent = told.samples is None
        if told.samples is not None:
            self._samples, self._yardstick = told.samples, told.yardstick
        self._draw()

    def on_resize(self, _: Resize) -> None:
        self.call_after_refresh(self._draw)

    # ------------------------------------------------------------ keys

    def action_show(self, quantity: str) -> None:
        self._look_at(self._view._replace(quantity=quantity))

    def action_lay_out(self, layout: str) -> None:
        self._look_at(self._view._replace(layout=Layout(layout)))

    def action_toggle_dead(self) -> None:
        self._look_at(self._view._replace(shows_dead=not self._view.shows_dead))

    def action_toggle_foot(self, what: str) -> None:
        self._feet ^= {what}
        self._draw()

    def action_toggle_help(self) -> None:
        self._shows_help = not self._shows_help
        self._draw()

    def action_scroll_by(self, nodes: int) -> None:
        self._look_at(self._view._replace(first=self._view.first + nodes))

    def action_scroll_page(self, pages: int) -> None:
        self.action_scroll_by(pages * self._fitting())

    def _fitting(self) -> int:
        return fitting(chosen(self._samples, self._view), self._view, self.size.width)

    def _look_at(self, view: View) -> None:
        self._view = view
        self._draw()

    # ------------------------------------------------------------ the screen

    def _draw(self) -> None:
        bars, foot = self.query_one("#bars", Static), self.query_one("#foot", Static)
        last = max(len(chosen(self._samples, self._view)) - self._fitting(), 0)
        self._view = self._view._replace(first=min(max(self._view.first, 0), last))
        width, height = self.size.width, max(self.size.height - 1, 1)
        lines = picture(self._samples, self._view, height, width)
        bars.update(Text(self._keys) if self._shows_help else Text("\n").join(map(_styled, lines)))
        foot.update(Text(self._foot()[:width], "reverse", no_wrap=True))

    def _foot(self) -> str:
        shown = [QUANTITIES[self._view.quantity].title]
        if "totals" in self._feet:
            shown.append(totals(self._samples))
        if "yardstick" in self._feet:
            shown.append(f"[Yardstick {self._yardstick}]")
        hidden = len(chosen(self._samples, self._view)) - self._fitting()
        if hidden > 0:
            shown.append(f"[{hidden} more: arrows]")
        shown.append(SILENT if self._is_silent else "h help, q quit")
        return "  ".join(shown)


def _styled(line: Line) -> Text:
    text = Text(no_wrap=True)
    for segment in line:
        text.append(segment.text, STYLES[segment.style])
    return text
