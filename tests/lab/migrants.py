"""Real programs that are moved while they work: each says "begun", works in rounds until there is a file "enough" in its
directory, and prints what came out: the same however many rounds there were, and wherever they ran.

At least one round is done, so a run that finds the file from the start tells what is right.  Bash scripts (`SCRIPTS`) and
programs of C and Python that they start; all run in an empty directory of node 1, where `FILES` were written before.
"""

from __future__ import annotations

from typing import Final

_C_ROUNDS: Final = r"""
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
static unsigned long all;
static void rounds(unsigned long (*work)(void)) {
    puts("begun"); fflush(stdout);
    all = work();
    while (access("enough", F_OK)) if (work() != all) { puts("a round came out otherwise"); exit(1); }
    printf("%lx\n", all);
}
"""

_C_WORK: Final = (
    _C_ROUNDS
    + r"""
#define SIZE (1 << 20)
static unsigned int memory[SIZE];
static unsigned long work(void) {
    unsigned long sum = 0; unsigned int x = 1; int i, j; char line[100]; FILE *file;
    for (j = 0; j < 3; j++) for (i = 0; i < SIZE; i++) {
        x = x * 1664525 + 1013904223;
        memory[i] = (j ? memory[i] : 0) * 31 + x;
    }
    for (i = 0; i < SIZE; i++) sum = sum * 33 + memory[i];
    if (!(file = fopen("sums", "w+"))) { perror("sums"); exit(1); }
    for (i = 0; i < 1000; i++) fprintf(file, "%u\n", memory[i]);
    rewind(file);
    while (fgets(line, sizeof line, file)) sum += strtoul(line, 0, 10);
    fclose(file);
    return sum;
}
int main(void) { rounds(work); return 0; }
"""
)

_C_THREADS: Final = (
    _C_ROUNDS
    + r"""
#define THREADS 6
#define TURNS 2000
static pthread_mutex_t guard = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static pthread_barrier_t start, end;
static unsigned long turn, sum;
static __thread unsigned long mine;  /* thread-local memory moves, too */
static void *run(void *number) {
    unsigned long i = (unsigned long)number, j;
    for (;;) {
        pthread_barrier_wait(&start);
        mine = i;
        for (j = 0; j < TURNS; j++) {
            pthread_mutex_lock(&guard);
            if (j % 100 == 0) {  /* in turn */
                while (turn % THREADS != i) pthread_cond_wait(&changed, &guard);
                sum = sum * 31 + mine; turn++;
                pthread_cond_broadcast(&changed);
            }
            mine = mine * 1664525 + 1013904223;
            pthread_mutex_unlock(&guard);
        }
        pthread_barrier_wait(&end);
    }
}
static unsigned long work(void) {
    turn = sum = 0;
    pthread_barrier_wait(&start); pthread_barrier_wait(&end);
    return sum;
}
int main(void) {
    pthread_t thread; long i;
    pthread_barrier_init(&start, 0, THREADS + 1); pthread_barrier_init(&end, 0, THREADS + 1);
    for (i = 0; i < THREADS; i++) pthread_create(&thread, 0, run, (void *)i);
    rounds(work);
    return 0;
}
"""
)

_PY_ROUNDS: Final = """
import os, sys

def rounds(work):
    print("begun", flush=True)
    first = work()
    while not os.path.exists("enough"):
        again = work()
        assert again == first, (again, first)
    print(first)
"""

_PY_WORK: Final = """
import hashlib, json, re
from rounds import rounds

def work():
    words = [hashlib.sha256(str(n).encode()).hexdigest()[:8] for n in range(20000)]
    by_letter = {}
    for word in words:
        by_letter.setdefault(word[0], set()).add(word)
    with open("words.json", "w") as file:
        json.dump({letter: sorted(those) for letter, those in by_letter.items()}, file)
    with open("words.json") as file:
        again = json.load(file)
    digits = hex(3 ** 20000)
    return sum(map(len, again.values())), len(re.findall("0[1-5]+", digits)), "".join(again)

rounds(work)
"""

_PY_MEMORY: Final = """
import sys
from rounds import rounds

MIB = int(sys.argv[1])
memory = [bytearray(b"%07d\\n" % number * 131072) for number in range(MIB)]

def work():
    for piece in memory:  # some of each is written
        piece[:8] = piece[-8:]
    return sum(int(piece[524288:524295]) for piece in memory), len({bytes(piece[:8]) for piece in memory})

rounds(work)
"""

_PY_FILES: Final = """
import os, sys
from rounds import rounds

folders = sys.argv[1:]
files = []
for number in range(1000):
    file = open(f"{folders[number % len(folders)]}/{number}", "w+")
    file.write(f"{number}\\n" * 3)
    file.flush()
    file.seek(len(f"{number}\\n"))
    files.append(file)

def work():
    total = 0
    for number, file in enumerate(files):
        at = file.tell()
        assert file.readline() == f"{number}\\n", number
        file.seek(0, 2)
        file.write("")
        file.seek(at)
        total += at
    return total

rounds(work)
"""

_PY_UNLINKED: Final = """
import os, tempfile
from rounds import rounds

own = tempfile.TemporaryFile(dir=".")
named = open("named", "w+b")
os.unlink("named")

def work():
    for file in (own, named):
        file.seek(0)
        file.truncate()
        file.write(b"kept nowhere" * 1000)
        file.flush()
        assert os.fstat(file.fileno()).st_nlink == 0
        file.seek(0)
        assert file.read() == b"kept nowhere" * 1000
    return own.tell()

rounds(work)
"""

_PY_SHARED: Final = """
import ctypes, multiprocessing, os
from rounds import rounds

context = multiprocessing.get_context("fork")
shared = context.Array(ctypes.c_ulong, 1000)
ask, answer = context.Semaphore(0), context.Semaphore(0)

def child():
    while True:
        ask.acquire()
        for index in range(1000):
            shared[index] = shared[index] * 3 + 1
        answer.release()

process = context.Process(target=child, daemon=True)

def work():
    for index in range(1000):
        shared[index] = index
    for _ in range(3):
        ask.release()
        answer.acquire()
    return sum(shared)

process.start()
rounds(work)
"""

_PY_TIMERS: Final = """
import ctypes, os, select, signal, struct
from rounds import rounds

libc = ctypes.CDLL(None, use_errno=True)
timer = libc.timerfd_create(1, 0)
assert timer >= 0
libc.timerfd_settime(timer, 0, struct.pack("4q", 0, 7_000_000, 0, 7_000_000), None)
ticks = 0

def tick(number, frame):
    global ticks
    ticks += 1

signal.signal(signal.SIGALRM, tick)
signal.setitimer(signal.ITIMER_REAL, 0.005, 0.005)
signal.signal(signal.SIGVTALRM, tick)
signal.setitimer(signal.ITIMER_VIRTUAL, 0.005, 0.005)

def work():
    global ticks
    ticks = 0
    while ticks < 10:
        select.select([], [], [], 0.002)
        sum(range(20000))
    assert struct.unpack("q", os.read(timer, 8))[0] > 0
    return signal.getitimer(signal.ITIMER_REAL)[1]

rounds(work)
signal.setitimer(signal.ITIMER_REAL, 0)
signal.setitimer(signal.ITIMER_VIRTUAL, 0)
"""

_PY_TCP: Final = """
import hashlib, os, socket
from rounds import rounds

listener = socket.create_server(("127.0.0.1", 0))
near = socket.create_connection(listener.getsockname())
far, _ = listener.accept()
listener.close()
for end in (near, far):  # much is on its way, and comes while it is frozen
    end.setsockopt(socket.SOL_SOCKET, 47, (4 << 20).to_bytes(4, "little"))  # SO_MAX_PACING_RATE, bytes a second
if os.fork() == 0:
    near.close()
    while piece := far.recv(65536):  # sends back what it gets
        far.sendall(piece)
    os._exit(0)
far.close()
piece = bytes(range(256)) * 400

def work():
    sum_ = hashlib.sha256()
    for _ in range(20):
        near.sendall(piece)
        left = len(piece)
        while left:
            got = near.recv(left)
            assert got
            sum_.update(got)
            left -= len(got)
    return sum_.hexdigest()

rounds(work)
"""

_PY_LISTING: Final = """
import hashlib, os, time
from rounds import rounds

os.makedirs("many", exist_ok=True)
for number in range(2000):  # several reads of the kernel's
    open(f"many/{number:05} of a name that takes some room, as others do".replace(" ", "_"), "w").close()

def work():
    names = []
    for entry in os.scandir("many"):  # nearly always in the middle of it
        names.append(entry.name)
        if len(names) % 100 == 0:
            time.sleep(0.003)
    return len(names), hashlib.sha256(" ".join(sorted(names)).encode()).hexdigest()

rounds(work)
"""

_PY_FORKS: Final = """
import os
from rounds import rounds

def work():
    total = 0
    for number in range(30):
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            grandchild = os.fork()
            if grandchild == 0:
                os.write(write, b"%d\\n" % number)
                os._exit(3)
            os._exit(os.waitstatus_to_exitcode(os.waitpid(grandchild, 0)[1]) + number)
        total += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        os.close(write)
        total += int(os.read(read, 100))
        os.close(read)
    return total

rounds(work)
"""

_PY_SQLITE: Final = """
import os, sqlite3
from rounds import rounds

base = sqlite3.connect("base", isolation_level=None)
base.execute("create table if not exists numbers (number integer, square text)")
base.execute("begin immediate")

def work():
    base.execute("delete from numbers")
    base.executemany("insert into numbers values (?, ?)", ((n, str(n * n)) for n in range(5000)))
    base.execute("create index squares on numbers (square)")
    ((total, first),) = base.execute("select sum(number), min(square) from numbers where square like '%6'")
    base.execute("drop index squares")
    return total, first

rounds(work)
base.execute("commit")
print(base.execute("pragma integrity_check").fetchall(), base.execute("select count(*) from numbers").fetchall())
"""

_SHELL: Final = r"""
echo begun
square() { echo $(($1 * $1)); }
while :; do
    seq 2000 | sort -rn | awk '{ s += $1 * NR } END { print s }' > part1 &
    { for i in 1 2 3 4 5; do square $i; done; } | paste -sd+ > part2
    wait $!
    got="$(cat part1) $(cat part2) $(printf %s abc | tr a-z A-Z | (read -r x; echo "$x$x"))"
    [ "${first=$got}" = "$got" ] || { echo "a round came out otherwise: $got"; exit 1; }
    [ ! -e enough ] || break
done
echo "$got"
"""

_PERL: Final = r"""
use strict; use Digest::MD5 'md5_hex'; $| = 1;
print "begun\n";
my $first;
do {
    my %count; my @words = map { substr md5_hex($_), 0, 4 } 1 .. 20000;
    $count{$_}++ for @words;
    my @most = (sort { $count{$b} <=> $count{$a} || $a cmp $b } keys %count)[0 .. 9];
    open my $sort, '-|', 'printf "c\nb\na\n" | sort' or die; chomp(my @sorted = <$sort>); close $sort;
    my $got = "@most @sorted";
    $first //= $got; die "a round came out otherwise: $got\n" if $got ne $first;
} until -e 'enough';
print "$first\n";
"""

_AWK: Final = r"""
BEGIN {
    print "begun"; fflush()
    do {
        delete seen; x = 1; n = 0
        for (i = 0; i < 60000; i++) { x = (x * 16807) % 2147483647; k = x % 1000; if (!(k in seen)) n++; seen[k] += i }
        t = n; for (k = 0; k < 1000; k++) t = (t * 31 + seen[k]) % 1000003
        if (first == "") first = t
        if (t != first) { print "a round came out otherwise"; exit 1 }
    } while ((getline line < "enough") < 0)
    print first
}
"""

_GCC: Final = r"""
for i in $(seq 300); do echo "int part$i(int x) { int s = $i; for (int i = 0; i < x; i++) s = s * 31 + i % $i; return s; }"; done > part.c
echo begun
while :; do
    gcc -pipe -O1 -c -o part.o part.c
    got=$(objcopy -O binary -j .text part.o /dev/stdout | md5sum)
    [ "${first=$got}" = "$got" ] || { echo "a round came out otherwise: $got, not $first"; exit 1; }
    [ ! -e enough ] || break
done
echo "$got"
"""

_TAR: Final = r"""
mkdir tree; for i in $(seq 200); do mkdir -p tree/$((i % 7)); seq $i 1500 > tree/$((i % 7))/$i; done
echo begun
while :; do
    got=$(tar -C tree --sort=name --mtime=@0 --owner=0 --group=0 -cf - . | gzip -n | md5sum)
    [ "${first=$got}" = "$got" ] || { echo "a round came out otherwise: $got, not $first"; exit 1; }
    [ ! -e enough ] || break
done
echo "$got"
"""

_PTY: Final = r"""
cat > inside <<'END'
stty -echo
[ "$(tty)" = "$1" ] || echo "no terminal of its own"
until [ -e enough ]; do stty size > size || echo "no size"; [ -t 0 ] || echo "no terminal any more"; done
END
echo begun
script -qec 'bash inside "$(tty)"; seq 3' typescript < /dev/null
"""

FILES: Final = {
    "work.c": _C_WORK, "threads.c": _C_THREADS, "rounds.py": _PY_ROUNDS, "work.py": _PY_WORK, "memory.py": _PY_MEMORY,
    "files.py": _PY_FILES, "unlinked.py": _PY_UNLINKED, "shared.py": _PY_SHARED, "timers.py": _PY_TIMERS,
    "tcp.py": _PY_TCP, "listing.py": _PY_LISTING, "forks.py": _PY_FORKS, "sqlite.py": _PY_SQLITE, "shell.sh": _SHELL,
    "work.pl": _PERL, "work.awk": _AWK, "gcc.sh": _GCC, "tar.sh": _TAR, "pty.sh": _PTY,
}  # fmt: skip

PYTHON: Final = "/usr/bin/python3"

COMMANDS: Final = {
    "C": "./work",
    "threads": "./threads",
    "python": f"{PYTHON} work.py",
    "perl": "perl work.pl",
    "awk": "awk -f work.awk",
    "bash with children and pipes": "bash shell.sh",
    "gcc -pipe": "bash gcc.sh",
    "tar and gzip": "bash tar.sh",
    "memory": f"{PYTHON} memory.py 500",
    "unlinked files": f"{PYTHON} unlinked.py",
    "shared memory": f"{PYTHON} shared.py",
    "timers": f"{PYTHON} timers.py",
    "TCP inside": f"{PYTHON} tcp.py",
    "listing a directory": f"{PYTHON} listing.py",
    "its own terminal": "bash pty.sh",
    "sqlite in a transaction": f"{PYTHON} sqlite.py",
    "forks all the time": f"{PYTHON} forks.py",
}
