"""The magic names and /mfs/proc as programs meet them: each process is led elsewhere, by the ordinary calls.

OMFS_MAGIC_CALLS: how many concurrent calls of the names are checked.
"""

from __future__ import annotations

import json

import pytest

from tests.lab.agents import number_from
from tests.lab.cluster import Cluster, Program, wait_until
from tests.watch.deadline import LAB_TIMEOUT_S

CALLS = number_from("OMFS_MAGIC_CALLS", 6000)
NAMES = ("here", "home", "lastexec", "magic", "selected")

pytestmark = [pytest.mark.lab, pytest.mark.timeout(max(LAB_TIMEOUT_S, CALLS // 50))]


@pytest.fixture
def marked(cluster: Cluster) -> str:
    """A directory that every node has, with the node's id in it."""
    for node in (1, 2, 3):
        cluster.run(node, f"mkdir -p /srv/marked; chmod 777 /srv/marked; echo {node} > /srv/marked/id")
    return "/srv/marked"


def select(node: int) -> str:
    return f"echo {node} > /mfs/proc/self/selected;"


def test_an_ordinary_process_is_at_home_everywhere(cluster: Cluster, marked: str) -> None:
    for node in (1, 3):
        for name in NAMES:
            assert cluster.run(node, f"readlink /mfs/{name}; cat /mfs/{name}{marked}/id").split() == [str(node)] * 2
            inside = cluster.run(node, f"cd /mfs/{name}/srv; pwd -P; cd ../..; pwd -P").split()
            assert inside == [f"/mfs/{node}/srv", "/mfs"]


def test_the_names_are_listed(cluster: Cluster) -> None:
    listed = cluster.run(1, "ls /mfs").split()
    assert set(listed) == {"1", "2", "3", "proc", *NAMES}
    long = cluster.run(1, "ls -l /mfs")
    assert "here -> 1" in long
    cluster.run(1, "test -L /mfs/here; test -d /mfs/here; ! rm /mfs/here; ! touch -h /mfs/selected")


def test_a_process_selects_a_node_for_itself_and_its_children(cluster: Cluster, marked: str) -> None:
    assert cluster.run(
        1, f"{select(2)} cat /mfs/selected{marked}/id; (sh -c 'cat /mfs/selected{marked}/id')"
    ).split() == ["2", "2"]
    assert cluster.run(1, f"cat /mfs/selected{marked}/id").strip() == "1", "another process"
    assert cluster.run(1, f"({select(2)} cat /mfs/selected{marked}/id); cat /mfs/selected{marked}/id").split() == [
        "2",
        "1",
    ]
    assert cluster.run(1, f"{select(3)} {select(0)} cat /mfs/selected{marked}/id").strip() == "1"
    assert cluster.run(1, f"{select(2)} unshare -p -f readlink /mfs/selected").strip() == "2", (
        "in another PID namespace"
    )
    assert cluster.run(1, f"{select(2)} cat /mfs/proc/self/selected").strip() == "2"


def test_who_selects_what_does_not_exist(cluster: Cluster) -> None:
    for wrong in ("99999", "-1", "x", "2 3", "1.0", "''"):
        done = cluster.try_run(1, f"{select(2)} echo {wrong} > /mfs/proc/self/selected || readlink /mfs/selected")
        assert done.stdout.strip() == "2", f"{wrong}: {done.stdout}{done.stderr}"
        assert "Invalid argument" in done.stderr
    assert "No such file" in cluster.try_run(1, f"{select(77)} ls /mfs/selected/").stderr, "not in the map (yet)"


def test_forks_and_execs(cluster: Cluster) -> None:
    assert cluster.program(1, "magicforks.py", "10", "1", "2", "3") == "done\n"


def test_scripts_that_lie_on_mfs(cluster: Cluster) -> None:
    """A shell has its script open while it executes something else, and its children's ancestors are looked at."""
    here = cluster.fresh_dir(2)
    script = f"#!/bin/bash\nexec cat < <({'readlink /mfs/lastexec & readlink /mfs/selected & ' * 5} wait)\n"
    cluster.run(2, f"cat > {here.native}/script << 'END'\n{script}END\nchmod 755 {here.native}/script")
    out = cluster.run(
        1, f"{select(3)} for i in $(seq 30); do {here.remote}/script; done | sort | uniq -c", timeout_s=60
    )
    assert out.split() == ["150", "1", "150", "3"]


def test_many_processes_and_threads_at_once(cluster: Cluster, marked: str) -> None:
    processes, threads = 6, 5
    each = CALLS // processes // threads
    done = json.loads(
        cluster.program(1, "magiccalls.py", "1", marked, str(processes), str(threads), str(each), "1", "2", "3", timeout_s=max(200, CALLS // 50))
    )  # fmt: skip
    assert done["wrong"] == []
    assert done["calls"] >= 0.9 * CALLS


THOUSAND = """
import os, random
children = []
for number in range(1000):
    node = str(number % 3 + 1)
    reading, writing = os.pipe()
    if not os.fork():
        with open("/mfs/proc/self/selected", "w") as file:
            file.write(node)
        os.read(reading, 1)
        os._exit(0 if os.readlink("/mfs/selected") == node else 1)
    children.append(writing)
    os.close(reading)
for writing in random.sample(children, 1000):
    os.write(writing, b"x")
print(sum(os.wait()[1] != 0 for _ in range(1000)))
"""


def test_a_thousand_processes_each_with_its_own_node(cluster: Cluster) -> None:
    assert cluster.python(1, THOUSAND, timeout_s=200).strip() == "0"
    wait_until(lambda: cluster.ask(1, "mignode")["processes"] == 0, "mignode forgets those that ended")


AGAIN = """
import os, time
def child(selects):
    reading, writing = os.pipe()
    waiting, go = os.pipe()
    pid = os.fork()
    if not pid:
        if selects:
            with open("/mfs/proc/self/selected", "w") as file:
                file.write("3")
        os.write(writing, os.readlink("/mfs/selected").encode())
        os.read(waiting, 1)
        os._exit(0)
    found = os.read(reading, 9).decode()
    os.write(go, b"x")
    os.waitpid(pid, 0)
    for descriptor in (reading, writing, waiting, go):
        os.close(descriptor)
    return pid, found
wrong, hits = [], 0
for _ in range(50):
    pid, found = child(True)
    wrong += [found] * (found != "3")
    time.sleep(2 / os.sysconf("SC_CLK_TCK"))  # within a tick they count as one
    with open("/proc/sys/kernel/ns_last_pid", "w") as file:
        file.write(str(pid - 1))
    again, found = child(False)
    hits += again == pid
    wrong += [(pid, again, found)] * (found != "1")
print(hits, wrong)
"""


def test_a_pid_that_is_used_again_is_another_process(cluster: Cluster) -> None:
    hits, wrong = cluster.python(1, AGAIN).strip().split(" ", 1)
    assert wrong == "[]"
    assert int(hits) >= 40, "others took the pids"


def test_who_selects_a_node_that_is_dead(cluster: Cluster, marked: str) -> None:
    cluster.kill(3)
    wait_until(
        lambda: "Host is down" in cluster.try_run(1, f"{select(3)} cat /mfs/selected{marked}/id").stderr, "EHOSTDOWN"
    )
    assert cluster.run(1, f"{select(3)} readlink /mfs/selected; cat /mfs/home{marked}/id").split() == ["3", "1"]


@pytest.mark.parametrize("program", ["mktemp", "python", "nameless", "sqlite3", "sort"])
def test_temporary_files_through_magic(cluster: Cluster, program: str) -> None:
    cluster.run(1, "mkdir -p /srv/tmp; chmod 1777 /srv/tmp")
    at = "/mfs/magic/srv/tmp"
    scripts = {
        "mktemp": f"f=$(mktemp -p {at}); exec 3<>$f; rm $f; echo hello >&3; cat < /proc/self/fd/3",
        "python": f"""python3 -c '
import tempfile
with tempfile.TemporaryFile(dir="{at}") as a, tempfile.NamedTemporaryFile(dir="{at}") as b:
    a.write(b"hel"); b.write(b"lo"); a.seek(0); b.seek(0); print((a.read() + b.read()).decode())'""",
        "nameless": f"""python3 -c '
import os
fd = os.open("{at}", os.O_TMPFILE | os.O_RDWR, 0o600)
os.write(fd, b"hello"); print(os.pread(fd, 9, 0).decode())'""",
        "sqlite3": f"SQLITE_TMPDIR={at} sqlite3 {at}/db 'pragma temp_store=1; create temp table t(x); insert into t values(\"hello\"); create table u as select * from t; select * from u;'; rm {at}/db",
        "sort": f"seq 100000 | shuf | sort -n -S 100K -T {at} | tail -1; echo hello",
    }
    assert cluster.run(1, scripts[program], timeout_s=120).split()[-1] == "hello"
    assert cluster.run(1, "ls -A /srv/tmp") == ""


def test_where(cluster: Cluster, marked: str) -> None:
    out = cluster.run(1, f"{select(3)} omfs-admin where --json /mfs/selected{marked}/id")
    told = json.loads(out)
    assert (told["node"], told["path"]) == (3, f"/mfs/3{marked}/id")
    assert "selected" in told["why"]
    names = json.loads(cluster.run(1, f"{select(3)} omfs-admin where --json $$"))["names"]
    assert {name: names[name][0] for name in NAMES} == dict.fromkeys(NAMES, 1) | {"selected": 3}
    assert cluster.try_run(1, "omfs-admin where /etc/passwd").returncode == 1
    assert cluster.try_run(1, "omfs-admin where 4194303").returncode == 1


# ---------------------------------------------------------------- mignode away


def selecting_program(cluster: Cluster, node: int, selected: int, marked: str) -> Program:
    """It selects a node, and reads the mark there at each line of its input."""
    program = cluster.start_python(
        node,
        "import sys\n"
        f"open('/mfs/proc/self/selected', 'w').write('{selected}')\n"
        "print('ready', flush=True)\n"
        "for line in sys.stdin:\n"
        f"    print(open('/mfs/selected{marked}/id').read().strip(), flush=True)\n",
    )
    program.wait_line("ready")
    return program


def test_without_mignode_names_are_answered_and_a_new_one_knows_them(cluster: Cluster, marked: str) -> None:
    program = selecting_program(cluster, 1, 2, marked)
    cluster.kill_daemon(1, cluster.ask(1, "mignode")["pid"])
    program.send_line("")
    program.wait_line("2")
    wait_until(
        lambda: "not connected" in cluster.try_run(1, "cat /mfs/proc/self/selected").stderr, "the mount knows it"
    )
    cluster.run(1, "mignode")  # as systemd does
    program.send_line("")
    program.wait_line("2")
    wait_until(lambda: cluster.ask(1, "mignode")["processes"] == 1, "it knows the program")
    program.finish()
    wait_until(lambda: cluster.ask(1, "mignode")["processes"] == 0, "mignode forgets it")


LOOPS = """
import os, select, sys
selected, directory = "{selected}", "{directory}"
with open("/mfs/proc/self/selected", "w") as file:
    file.write(selected)
rounds, wrong = 0, []
def use(name):
    node = (selected if selected != "0" else "1") if name == "selected" else "1"
    path, plain = f"/mfs/{{name}}{{directory}}/{{os.getpid()}}", f"/mfs/{{node}}{{directory}}/{{os.getpid()}}"
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    os.write(descriptor, b"mine")
    os.close(descriptor)
    for one in (path, plain):
        with open(one) as file:
            if (text := file.read()) != "mine":
                wrong.append(f"{{one}}: {{text!r}}")
    os.unlink(path)
    if os.path.exists(plain):
        wrong.append(f"{{path}} is not {{plain}}")
def use_all():
    for name in {names}:
        try:
            use(name)
        except OSError as error:
            wrong.append(f"{{name}}: {{error}}")
while True:
    use_all()
    if not (child := os.fork()):
        wrong.clear()
        use_all()
        os._exit(bool(wrong))
    if os.waitpid(child, 0)[1]:
        wrong.append("a child's")
    rounds += 1
    if select.select([0], [], [], 0)[0]:
        if not sys.stdin.readline():
            break
        print(rounds, wrong, flush=True)
"""


def test_nothing_goes_wrong_while_mignode_dies_again_and_again(cluster: Cluster, marked: str) -> None:
    codes = [LOOPS.format(selected=node, directory=marked, names=NAMES) for node in (0, 2, 3)]
    programs = [cluster.start_python(1, code) for code in codes]

    def rounds() -> list[int]:
        for program in programs:
            program.send_line("")
        told = [program.next_line().split(" ", 1) for program in programs]
        assert [wrong for _, wrong in told] == ["[]"] * 3
        return [int(done) for done, _ in told]

    rounds()
    for _ in range(5):
        cluster.kill_daemon(1, cluster.ask(1, "mignode")["pid"])
        before = rounds()
        assert all(one < other for one, other in zip(before, rounds(), strict=True)), "they go on without it"
        cluster.run(1, "mignode")  # as systemd does, while they go on
        rounds()
    wait_until(lambda: cluster.ask(1, "mignode")["processes"] >= 2, "it knows the two that chose")
    rounds()
    for program in programs:
        program.finish()


def test_a_new_mount_knows_what_mignode_knows(cluster: Cluster, marked: str) -> None:
    program = selecting_program(cluster, 3, 2, marked)
    cluster.run(3, "umount /mfs; mount /mfs")
    program.send_line("")
    program.wait_line("2")
    program.finish()


# ---------------------------------------------------------------- nomfs


def test_nomfs_keeps_others_out_until_it_is_over(cluster: Cluster) -> None:
    here = cluster.fresh_dir(2)
    cluster.run(1, f"echo one > {here.remote}/file; cat {here.remote}/file")
    cluster.run(2, "echo 1 > /mfs/proc/hpc/admin/nomfs; cat /mfs/proc/hpc/admin/nomfs | grep -x 1")
    try:
        done = cluster.try_run(1, f"cat {here.remote}/file", timeout_s=60)
        assert done.returncode != 0
        assert "Permission denied" in done.stderr
        assert cluster.run(2, f"cat {here.remote}/file").strip() == "one", "its own programs"
    finally:
        cluster.run(2, "echo 0 > /mfs/proc/hpc/admin/nomfs")
    wait_until(lambda: cluster.try_run(1, f"cat {here.remote}/file").returncode == 0, "node 1 is let in again")
    cluster.run(1, f"echo two > {here.remote}/file")
    assert cluster.run(2, f"cat {here.native}/file").strip() == "two"
