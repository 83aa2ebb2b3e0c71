"""The magic names in a guest: where it is, where it was born, what it chose and made, while it goes from node to node."""

from __future__ import annotations

import ast

import pytest

from tests.lab.askedguest import ALICE, BOB, AskedGuest
from tests.lab.cluster import Cluster

pytestmark = pytest.mark.lab

NAMES = ("here", "home", "lastexec", "selected", "magic")
MADE = "/srv/made"
THERE = f"/mfs/magic{MADE}"


@pytest.fixture(autouse=True)
def made(cluster: Cluster) -> None:
    """A directory that every node has, empty."""
    for node in (1, 2, 3):
        cluster.run(node, f"rm -rf {MADE}; mkdir -p {MADE}; chmod 777 {MADE}")


def led(guest: AskedGuest) -> list[int]:
    return list(ast.literal_eval(guest.ask(f"[int(os.readlink('/mfs/' + name)) for name in {NAMES}]")))


def test_a_guest_is_led_by_where_it_is(cluster: Cluster) -> None:
    guest = AskedGuest(cluster)
    assert led(guest) == [1, 1, 1, 1, 1]
    guest.ask(f"os.close(os.open('{THERE}/one', os.O_CREAT | os.O_WRONLY))")
    guest.move(2)
    assert led(guest) == [2, 1, 1, 1, 1]
    assert guest.ask(f"os.stat('{THERE}/one').st_size") == "0", "what it made at home"
    links = "['readlink', *('/mfs/' + name for name in ('lastexec', 'here', 'home', 'magic'))]"
    executed = f"subprocess.run({links}, capture_output=True, text=True).stdout.split()"
    assert guest.ask(executed) == "['2', '2', '1', '1']", "another program, executed at node 2"

    guest.ask(f"files.append(os.open('{THERE}/two', os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))")
    assert led(guest) == [2, 1, 1, 1, 2]
    assert cluster.run(2, f"ls {MADE}").split() == ["two"]
    assert guest.ask(f"os.stat('{THERE}/one')") == "ENOENT"

    guest.move(3)
    assert led(guest) == [3, 1, 1, 1, 2]
    assert guest.ask(f"os.unlink('{THERE}/two')") == "None", "it is still where it was made"
    assert cluster.run(2, f"ls {MADE}").split() == []
    assert guest.ask("[os.write(files[0], b'kept'), os.pread(files[0], 9, 0)][1]") == "b'kept'"
    assert led(guest) == [3, 1, 1, 1, 2]
    assert guest.ask(f"files.append(os.open('{THERE}', os.O_TMPFILE | os.O_RDWR, 0o600))") == "None"
    assert led(guest) == [3, 1, 1, 1, 3]
    assert guest.ask("[os.close(files.pop()), os.close(files.pop())]") == "[None, None]"

    guest.move("home")
    assert led(guest) == [1, 1, 1, 1, 3]
    assert guest.end() == "status 0"


LOOKS = f"""
import os
def look(who):
    home, selected = os.readlink("/mfs/home"), os.readlink("/mfs/selected")
    if (home, selected) != ("1", "3"):
        with open("{MADE}/wrong", "a") as file:
            file.write(f"{{who}} at node {{os.readlink('/mfs/here')}}: home {{home}}, selected {{selected}}\\n")
count = 0
while not os.path.exists("{MADE}/stop"):
    look("itself")
    pid = os.fork()
    if not pid:
        look("its child")
        os._exit(0)
    os.waitpid(pid, 0)
    count += 1
print(count)
"""


def test_home_is_home_at_every_moment_of_a_move(cluster: Cluster) -> None:
    guest = AskedGuest(cluster)
    guest.ask("open('/proc/self/selected', 'w').write('3')")
    guest.ask(f"files.append(subprocess.Popen(['python3', '-c', {LOOKS!r}], stdout=subprocess.PIPE))")
    for node in (2, 3, "home", 2, 3, "home", 2, 3):
        guest.move(node)
    cluster.run(1, f"touch {MADE}/stop")
    assert int(guest.ask("int(files[0].communicate()[0])")) > 0
    assert cluster.run(1, f"cat {MADE}/wrong 2> /dev/null || true") == ""


FORKS = f"""
import os, time
waiting, go = os.pipe()
children = 0
while not os.path.exists("{MADE}/stop"):
    if not os.fork():
        os.close(go)
        os.read(waiting, 1)
        with open("{MADE}/homes", "a") as file:
            file.write(os.readlink("/mfs/home") + os.readlink("/mfs/selected") + "\\n")
        os._exit(0)
    children += 1
    time.sleep(0.02)
os.close(go)
for _ in range(children):
    os.wait()
print(children)
"""


def test_who_was_forked_while_it_left_or_arrived_is_from_home(cluster: Cluster) -> None:
    """For good, not for a moment: they look when it has long arrived."""
    guest = AskedGuest(cluster)
    guest.ask("open('/proc/self/selected', 'w').write('3')")
    guest.move(3)
    guest.ask(f"files.append(subprocess.Popen(['python3', '-c', {FORKS!r}], stdout=subprocess.PIPE))")
    guest.move(2)
    cluster.run(1, f"touch {MADE}/stop")
    children = int(guest.ask("int(files[0].communicate()[0])"))
    assert children > 3
    assert cluster.run(1, f"sort {MADE}/homes | uniq -c").split() == [str(children), "13"]


def test_who_has_lost_its_parent_is_from_home(cluster: Cluster) -> None:
    """It is its init's child then, which no fork event tells of in a lab node."""
    guest = AskedGuest(cluster)
    guest.move(2)
    out = guest.ask("subprocess.run('(sleep 0.1; readlink /mfs/home) &', shell=True, capture_output=True, text=True)")
    assert "stdout='1\\n'" in out


def test_what_is_selected_before_it_begins_and_by_itself_goes_along(cluster: Cluster) -> None:
    guest = AskedGuest(cluster, before="echo 2 > /mfs/proc/self/selected")
    assert led(guest)[3] == 2
    guest.move(3)
    assert led(guest)[3] == 2
    assert guest.ask("open('/proc/self/selected', 'w').write('3')") == "1"
    guest.move("home")
    assert led(guest)[3] == 3


def test_selected_is_said_at_home_and_told_there(cluster: Cluster) -> None:
    """By the pid that its user sees, whose entry is mosrun's; its children have their own."""
    guest = AskedGuest(cluster)
    file = f"/mfs/proc/{guest.pid}/selected"
    for node, selected in (("home", 2), (2, 3), (3, 1), ("home", 3)):
        guest.move(node)
        cluster.run(1, f"echo {selected} > {file}", user=ALICE)
        assert led(guest)[3] == selected
    guest.move(2)
    assert guest.ask("open('/proc/self/selected', 'w').write('2')") == "1"
    assert cluster.run(1, f"cat {file}").strip() == "2"
    assert cluster.try_run(1, f"echo 1 > {file}", user=BOB).returncode == 1
    assert cluster.run(1, f"cat {file}").strip() == "2"
