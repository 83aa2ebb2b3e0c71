"""What single system calls must do across nodes: names, sizes, appends, holes, links, special files."""

from __future__ import annotations

import json

import pytest

from tests.lab.cluster import Cluster

pytestmark = pytest.mark.lab


def test_names_are_bytes_and_paths_go_to_path_max(cluster: Cluster) -> None:
    assert cluster.program(1, "names.py", cluster.fresh_dir(2).remote) == "ok\n"


def test_an_unlinked_open_file_lives_on(cluster: Cluster) -> None:
    assert cluster.program(1, "unlinked.py", cluster.fresh_dir(2).remote) == "ok\n"


def test_appends_from_three_nodes_are_neither_lost_nor_torn(cluster: Cluster) -> None:
    here = cluster.fresh_dir(2)
    paths = {1: here.remote, 2: here.native, 3: here.remote}
    writers = [cluster.start_program(n, "appender.py", f"{p}/log", f"node{n}", "600") for n, p in paths.items()]
    for writer in writers:
        writer.wait_success(timeout_s=240)
    assert cluster.program(3, "check_records.py", f"{here.remote}/log", "600", "node1", "node2", "node3") == "ok\n"


def test_files_beyond_4_gib_holes_and_fallocate(cluster: Cluster) -> None:
    here = cluster.fresh_dir(2)
    script = f"""
import os, fcntl
fd = os.open("{here.remote}/big", os.O_RDWR | os.O_CREAT)
far = 5 << 30
os.pwrite(fd, b"far", far)
assert os.pread(fd, 10, far) == b"far" and os.fstat(fd).st_size == far + 3
assert os.fstat(fd).st_blocks < 100
assert os.lseek(fd, 0, os.SEEK_DATA) == far and os.lseek(fd, 0, os.SEEK_HOLE) == 0
assert os.lseek(fd, far, os.SEEK_HOLE) == far + 3
os.ftruncate(fd, 0)
os.posix_fallocate(fd, 0, 1 << 20)
assert os.fstat(fd).st_size == 1 << 20 and os.fstat(fd).st_blocks * 512 >= 1 << 20
os.pwrite(fd, b"x" * (1 << 20), 0)
os.fsync(fd)
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
KEEP, PUNCH = 1, 2
assert libc.fallocate(fd, KEEP | PUNCH, ctypes.c_long(4096), ctypes.c_long(512 * 1024)) == 0
assert os.pread(fd, 4, 4094) == b"xx\\0\\0" and os.fstat(fd).st_blocks * 512 < 600 * 1024
assert libc.fallocate(fd, KEEP, ctypes.c_long(1 << 20), ctypes.c_long(1 << 20)) == 0
assert os.fstat(fd).st_size == 1 << 20
print("ok")
"""
    assert cluster.python(1, script) == "ok\n"


def test_copy_file_range_on_one_owner_stays_there(cluster: Cluster) -> None:
    here = cluster.fresh_dir(2)
    elsewhere = cluster.fresh_dir(3)
    script = f"""
import os, errno
a = os.open("{here.remote}/a", os.O_RDWR | os.O_CREAT); os.write(a, os.urandom(3 << 20))
b = os.open("{here.remote}/b", os.O_RDWR | os.O_CREAT)
done = 0
while done < 3 << 20:
    done += os.copy_file_range(a, b, (3 << 20) - done, done, done)
assert os.pread(a, 4 << 20, 0) == os.pread(b, 4 << 20, 0)
c = os.open("{elsewhere.remote}/c", os.O_RDWR | os.O_CREAT)
try: os.copy_file_range(a, c, 100, 0, 0)  # the kernel copies through the page cache where we say EXDEV
except OSError as error: assert error.errno == errno.EXDEV, error
else: assert os.pread(c, 200, 0) == os.pread(a, 100, 0)
"""
    before = cluster.bytes_to(1, 2)
    cluster.python(1, script)
    assert cluster.bytes_to(1, 2) - before < 5 << 20, "written once, copied on the owner"
    cluster.run(1, f"cp {here.remote}/a {elsewhere.remote}/whole && cmp {here.remote}/a {elsewhere.remote}/whole")


def test_a_directory_of_100000_entries_costs_no_more_than_its_entries(cluster: Cluster) -> None:
    here = cluster.fresh_dir(2)
    cluster.python(
        2,
        f"import os; os.chdir('{here.native}'); [os.close(os.open(f'e{{n}}', os.O_CREAT, 0o600)) for n in range(100_000)]",
    )
    before = cluster.requests_to(1, 2)
    count = cluster.python(1, f"import os; print(len(set(os.listdir('{here.remote}'))))", timeout_s=240)
    assert int(count) == 100_000
    assert cluster.requests_to(1, 2) - before < 5_000, "a listing is asked for in pieces, not entry by entry"
    cluster.run(2, f"rm -rf {here.native}")


def test_renames_links_and_exchange(cluster: Cluster) -> None:
    here, other = cluster.fresh_dir(2), cluster.fresh_dir(3)
    script = f"""
import os, errno, ctypes
libc = ctypes.CDLL(None, use_errno=True)
def renameat2(a, b, flags):
    if libc.renameat2(-100, a.encode(), -100, b.encode(), flags):
        raise OSError(ctypes.get_errno(), a)
def expect(code, call, *arguments):
    try: call(*arguments)
    except OSError as error: assert error.errno == code, error
    else: raise AssertionError(arguments)
os.chdir("{here.remote}")
for name in "ab": open(name, "w").write(name)
expect(errno.EEXIST, renameat2, "a", "b", 1)
renameat2("a", "b", 2)
assert open("a").read() == "b" and open("b").read() == "a"
os.link("a", "c"); assert os.stat("a").st_nlink == 2 and os.path.samefile("a", "c")
os.unlink("a"); assert os.stat("c").st_nlink == 1
os.mkdir("d"); os.rename("c", "d/c"); expect(errno.ENOTEMPTY, os.rmdir, "d")
expect(errno.EXDEV, os.rename, "b", "{other.remote}/b"); expect(errno.EXDEV, os.link, "b", "{other.remote}/b")
expect(errno.EEXIST, os.mkdir, "d"); expect(errno.ENOTDIR, os.rmdir, "b"); expect(errno.EISDIR, os.unlink, "d")
os.symlink("b", "s"); assert os.readlink("s") == "b" and open("s").read() == "a"
directory = os.open("d", os.O_RDONLY | os.O_DIRECTORY); os.fsync(directory); os.fdatasync(directory)
expect(errno.EISDIR, os.read, directory, 1)
print("ok")
"""
    assert cluster.python(1, script) == "ok\n"


def test_special_files(cluster: Cluster) -> None:
    here = cluster.fresh_dir(2)
    script = f"""
import os, errno, socket, stat, threading
os.chdir("{here.remote}")
os.mkfifo("fifo"); assert stat.S_ISFIFO(os.stat("fifo").st_mode)
got = []
reader = threading.Thread(target=lambda: got.append(open("fifo").read())); reader.start()
with open("fifo", "w") as f: f.write("through the pipe")
reader.join(); assert got == ["through the pipe"]
s = socket.socket(socket.AF_UNIX); s.bind("sock"); assert stat.S_ISSOCK(os.stat("sock").st_mode)
s.listen()
client = socket.socket(socket.AF_UNIX); client.connect("sock"); client.sendall(b"near")
assert s.accept()[0].recv(9) == b"near"
for kind in (stat.S_IFCHR, stat.S_IFBLK):
    try: os.mknod("dev", kind | 0o600, os.makedev(1, 3))
    except OSError as error: assert error.errno == errno.EPERM, error
    else: raise AssertionError("a device was made")
print("ok")
"""
    script += "import sys; sys.stdin.readline()"  # it goes on listening
    program = cluster.start_python(1, script.replace('print("ok")', 'print("ok", flush=True)'))
    program.wait_line("ok")
    connect = f"import os, socket; os.chdir('{here.native}'); socket.socket(socket.AF_UNIX).connect('sock')"
    done = cluster.try_run(2, f'python3 -c "{connect}"')
    assert "ConnectionRefusedError" in done.stderr, "it is the socket of a program on node 1"
    program.finish()
    assert cluster.run(2, f"stat -c %F {here.native}/fifo {here.native}/sock").split("\n")[:2] == ["fifo", "socket"]


def test_each_fsync_reaches_the_owner(cluster: Cluster) -> None:
    """Also where all was written already: only its disk knows whether it is safe."""
    here = cluster.fresh_dir(2)
    script = f"""
import os, sys
os.mkdir("{here.remote}/d")
file, directory = os.open("{here.remote}/d/f", os.O_RDWR | os.O_CREAT), os.open("{here.remote}/d", os.O_RDONLY)
os.write(file, b"x"); os.fsync(file); os.fsync(directory)
for call, fd in ((os.fsync, file), (os.fdatasync, file), (os.fsync, directory)):
    print("ready", flush=True); sys.stdin.readline()
    for _ in range(100): call(fd)
    print("done", flush=True); sys.stdin.readline()
"""
    program = cluster.start_python(1, script)
    for kind in ("fsync", "fdatasync", "fsync of a directory"):
        program.wait_line("ready")
        before = cluster.requests_to(1, 2)
        program.send_line("")
        program.wait_line("done")
        assert cluster.requests_to(1, 2) - before >= 100, kind
        program.send_line("")
    program.finish()


def test_what_is_hidden_and_what_is_refused(cluster: Cluster) -> None:
    for node in (1, 2):
        names = set(cluster.run(node, "ls -A /mfs/2").split())
        assert {"etc", "usr", "tmp"} <= names
    assert "proc" not in cluster.run(1, "ls -A /mfs/2").split()
    script = """
import os, errno
for path, codes in {"/mfs/2/proc/1": {errno.ENOENT}, "/mfs/2/mfs": {errno.EREMOTE}, "/mfs/2/mfs/1/etc": {errno.EREMOTE},
                    "/mfs/2/dev/null": {errno.ENOENT}, "/mfs/77": {errno.ENOENT}}.items():
    try: os.stat(path)
    except OSError as error: assert error.errno in codes, (path, error)
    else: raise AssertionError(path)
print("ok")
"""
    assert cluster.python(1, script) == "ok\n"


def test_times_are_the_owners_and_df_tells_the_truth(cluster: Cluster) -> None:
    here = cluster.fresh_dir(2)
    cluster.run(1, f"touch {here.remote}/now; touch -d 2001-02-03T04:05:06.123456789Z {here.remote}/then")
    assert cluster.run(2, f"stat -c %.9Y {here.native}/then") == "981173106.123456789\n"
    blocks = "import os,sys; s=os.statvfs(sys.argv[1]); print(s.f_blocks, s.f_frsize, s.f_files)"
    assert cluster.run(1, f"python3 -c '{blocks}' {here.remote}") == cluster.run(
        2, f"python3 -c '{blocks}' {here.native}"
    )


def test_mmap_and_exec_of_remote_files(cluster: Cluster) -> None:
    here = cluster.fresh_dir(2)
    cluster.run(1, f"cp /usr/bin/env {here.remote}/env && {here.remote}/env printf works | grep -qx works")
    script = f"""
import mmap, os
fd = os.open("{here.remote}/map", os.O_RDWR | os.O_CREAT); os.ftruncate(fd, 10000)
with mmap.mmap(fd, 10000) as m:
    m[5000:5005] = b"store"; m.flush()
assert os.pread(fd, 5, 5000) == b"store"
with mmap.mmap(fd, 10000, prot=mmap.PROT_READ) as m: assert m[5000:5005] == b"store"
print("ok")
"""
    assert cluster.python(1, script) == "ok\n"
    assert cluster.run(2, f"dd if={here.native}/map bs=1 skip=5000 count=5 status=none") == "store"


def test_one_gib_arrives_whole(cluster: Cluster) -> None:
    here = cluster.fresh_dir(2)
    write = f"head -c 1073741824 /dev/urandom | tee {here.remote}/gib | sha256sum"
    written = cluster.run(1, write, timeout_s=300)
    assert cluster.run(3, f"sha256sum < {here.remote}/gib", timeout_s=300) == written
    assert json.loads(cluster.python(2, f"import os; print(os.stat('{here.native}/gib').st_size)")) == 1 << 30
    cluster.run(2, f"rm {here.native}/gib")
