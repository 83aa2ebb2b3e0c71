"""The registry's book event by event, with processes that do what they are told; test_places.py has the whole world."""

from __future__ import annotations

from mignode.book import Book, Change, Entry, Settings
from mignode.decay import understood
from omfs.magic.places import Key, Place
from tests.unit.placeworld import OWN, Rules, Step, World

NOTHING = Change([], [])


class Script:
    """Processes as a test sets them: children by parents, and batches of fork events."""

    def __init__(self) -> None:
        self.children: dict[Key, list[Key]] = {}
        self.batches: list[list[tuple[int, int]] | None] = []

    def parent_of(self, key: Key) -> Key | None:
        return next((parent for parent, children in self.children.items() if key in children), None)

    def children_of(self, key: Key) -> list[Key]:
        return self.children.get(key, [])

    def living(self) -> list[Key]:
        return list(dict.fromkeys([*self.children, *(key for some in self.children.values() for key in some)]))

    def identify(self, pid: int) -> Key | None:
        return next((key for key in self.living() if key[0] == pid), None)

    def forks(self) -> list[tuple[int, int]] | None:
        return self.batches.pop(0) if self.batches else []


A, B, C, D = (10, 1), (11, 2), (12, 3), (13, 4)


def family() -> tuple[Script, Book]:
    """A has the child B, B has C, and D stands alone."""
    script = Script()
    script.children = {A: [B], B: [C], D: []}
    return script, Book(OWN, script)


def ordinary(key: Key, selected: int = 0) -> Place:
    return Place(*key, OWN, OWN, OWN, "", selected)


def test_descendants_keep_what_they_have() -> None:
    _, book = family()
    assert book.selected(A, 5) == Change([ordinary(B), ordinary(C), ordinary(A, 5)], [])
    assert book.selected(A, 6) == Change([ordinary(A, 6)], [])
    assert book.selected(C, 7) == Change([ordinary(C, 7)], [])
    assert [book.nearest(key) for key in (A, B, C, D)] == [ordinary(A, 6), ordinary(B), ordinary(C, 7), None]
    assert len(book) == 3
    assert A in book
    assert D not in book


def test_a_new_child_has_its_parents_until_that_changes() -> None:
    script, book = family()
    book.selected(A, 5)
    script.children[A].append(D)
    assert book.entry_of(D) == Entry(ordinary(D, 5), Settings())
    assert book.selected(A, 6) == Change([ordinary(D, 5), ordinary(A, 6)], [])


def test_the_same_again_is_no_change() -> None:
    script, book = family()
    assert book.selected(A, 0) == NOTHING
    assert not NOTHING
    assert book.selected(C, 5)
    assert book.selected(C, 5) == NOTHING
    assert book.selected(C, 0) == Change([ordinary(C)], [])
    script.children[C] = [D]
    script.children[D] = [(20, 9)]
    assert book.selected(D, 0) == Change([ordinary((20, 9)), ordinary(D)], [])  # its own choice from now on


def test_settings_are_not_the_mounts_business() -> None:
    script, book = family()
    settings = Settings(lock=True, migfilter=True, migpolicy=True, mignodes=1 << 300, nmigs=3)
    assert book.set_settings(A, settings).puts == [ordinary(B), ordinary(C), ordinary(A)]
    assert book.set_settings(A, Settings(lock=True, nmigs=3)) == NOTHING
    script.children[A].append(D)
    assert book.entry_of(D).settings == Settings(lock=True)
    assert book.entry_of(C).settings == Settings()


def test_a_class_of_decay_is_passed_on_unless_it_says_otherwise() -> None:
    script, book = family()
    book.set_settings(A, Settings(decay=understood("cpujob")))
    script.children[A].append(D)
    assert book.entry_of(D).settings == Settings(decay=understood("cpujob"))
    book.set_settings(D, Settings(decay=understood("cpujob noinherit")))
    script.children[D] = [(20, 9)]
    assert book.entry_of((20, 9)).settings == Settings()


def test_a_migration_is_counted_and_notes_where_it_was() -> None:
    _, book = family()
    assert book.moved(C, 4, "first").puts == [Place(*C, OWN, 4, OWN, "first", magic=OWN)]
    assert book.moved(C, 6, "first").puts == [Place(*C, OWN, 6, OWN, "first", magic=OWN)]
    assert book.departing(C, "second").place == Place(*C, OWN, 6, 6, "second", magic=OWN)
    assert book.moved(C, 7, "second").puts == [Place(*C, OWN, 7, 6, "second", magic=OWN)]
    assert book.entry_of(C).settings.nmigs == 3
    assert book.created(C, 7).puts == [Place(*C, OWN, 7, 6, "second", magic=7)]


def test_a_guest_is_what_its_last_node_says() -> None:
    _, book = family()
    guest = Place(*D, 3, OWN, 2, "image", 5, 6)
    assert book.register(guest, Settings(nmigs=2)) == Change([guest], [])
    assert book.entry_of(D) == Entry(guest, Settings(nmigs=2))
    assert list(book) == [Entry(guest, Settings(nmigs=2))]
    assert book.register(Place(*C, 3, OWN, 2, "image")).gone == []


def test_an_end_takes_the_entry() -> None:
    _, book = family()
    book.selected(C, 5)
    assert book.exited(D) == NOTHING
    assert book.exited(C) == Change([], [C])
    assert book.nearest(C) is None


def test_another_process_with_the_pid_ends_the_entry() -> None:
    _, book = family()
    book.selected(C, 5)
    later = (C[0], 99)
    assert book.selected(later, 6) == Change([ordinary(later, 6)], [C])
    assert book.selected(C, 7) == NOTHING  # it has ended while somebody looked
    assert book.nearest(later) == ordinary(later, 6)


def test_a_fork_by_a_stranger_ends_the_entry_of_who_had_the_pid() -> None:
    script, book = family()
    book.selected(C, 5)
    script.children[B] = []
    script.children[D] = [(C[0], 99)]
    script.batches = [[(D[0], C[0])]]
    assert book.notice() == Change([], [C])


def test_a_fork_that_is_told_late_changes_nothing() -> None:
    script, book = family()
    book.selected(A, 5)
    script.batches = [[(A[0], B[0])]]
    assert book.notice() == NOTHING
    assert book.nearest(B) == ordinary(B)


def test_forks_are_followed_through_those_who_are_gone() -> None:
    script, book = family()
    book.selected(D, 5)
    script.children[A].append((30, 9))  # an orphan by now
    script.batches = [[(D[0], 20), (20, 21)], [(21, 30), (1, 2)]]
    assert book.notice() == Change([ordinary((30, 9), 5)], [])


def test_lost_forks_are_made_up_for() -> None:
    script, book = family()
    book.take_back([Entry(ordinary(D, 5), Settings(lock=True)), Entry(ordinary((77, 7), 6), Settings())])
    script.children[D] = [(20, 9)]
    script.batches = [[(77, B[0])], None]  # who was told before counts as little as who was not
    assert book.notice() == Change([ordinary((20, 9), 5)], [(77, 7)])
    assert book.entry_of((20, 9)).settings == Settings(lock=True)
    script.children[(20, 9)] = [(21, 10)]
    assert book.catch_up() == Change([ordinary((21, 10), 5)], [])


def test_an_orphan_that_comes_while_we_look_is_no_heir_of_who_gets_it() -> None:
    """Wherever in the call that happens: its parent's value is what it keeps."""
    for moment in range(12):
        world = World(has_events=True, rules=Rules())
        reaper = world.fork(world.init, 0)
        assert reaper is not None
        parent = world.fork(reaper, 1)
        assert parent is not None
        for process, node in ((reaper, 2), (parent, 3)):
            world.apply(world.book.selected(process.key, node))
            process.selected = node
        processes = list(world.all.values())
        idle = Step("exit", processes.index(world.init), 0)
        orphan = Step("orphan", processes.index(parent), 0)
        world.step(Step("select", processes.index(reaper), 1, (orphan, *[idle] * moment)))
        world.finish()
