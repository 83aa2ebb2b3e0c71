"""Programs that are dumped and restored: each counts what it is told, so it shows whether all that it had is there again.

They read lines and answer each with one.
"""

from __future__ import annotations

from typing import Final

PYTHON: Final = "/usr/bin/python3"
SUM: Final = "import sys\ntotal = 0\nfor line in sys.stdin:\n    total += int(line)\n    print(total, flush=True)\n"

COUNTS_ON_TERMINAL: Final = f"import tty\ntty.setcbreak(0)  # no echo\nprint('ready', flush=True)\n{SUM}"

THREADS: Final = r"""
#include <pthread.h>
#include <stdio.h>
#define COUNT 8
static int kept[COUNT], turn = -1;
static pthread_mutex_t guard = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static __thread int mine;  /* thread-local memory has to move, too */
static void *run(void *number) {
    long i = (long)number;
    pthread_mutex_lock(&guard);
    for (;;) {
        while (turn != i) pthread_cond_wait(&changed, &guard);
        kept[i] = ++mine;
        turn = -1;
        pthread_cond_broadcast(&changed);
    }
}
int main(void) {
    pthread_t thread;
    long i;
    int lines = 0, sum;
    for (i = 0; i < COUNT; i++) pthread_create(&thread, 0, run, (void *)i);
    while (getchar() != EOF) {
        if (++lines % 2) continue;  /* a line is a character and its end */
        pthread_mutex_lock(&guard);
        for (i = 0, sum = 0; i < COUNT; i++) {
            turn = i;
            pthread_cond_broadcast(&changed);
            while (turn != -1) pthread_cond_wait(&changed, &guard);
            sum += kept[i];
        }
        pthread_mutex_unlock(&guard);
        printf("%d\n", sum);
        fflush(stdout);
    }
}
"""

PIPES: Final = """
import os, sys
read, write = os.pipe()
back, answer = os.pipe()
if os.fork() == 0:
    os.close(write)
    for line in sys.stdin:  # the child gets the lines, its parent adds what lies in the pipe
        os.write(answer, line.encode())
    os._exit(0)
os.write(write, b"7" * 5000)  # nobody has read it when the dump comes
os.close(answer)
for line in os.fdopen(back):
    data = os.read(read, int(line))
    print(len(data), data.count(b"7"), flush=True)
    os.write(write, data)
"""

TCP: Final = """
import socket, sys
listener = socket.create_server(("127.0.0.1", 0))
near = socket.create_connection(listener.getsockname())
far, _ = listener.accept()
near.sendall(b"sent before the dump,")
for line in sys.stdin:
    near.sendall(line.encode())
    heard = b""
    while not heard.endswith(b"\\n"):
        heard += far.recv(100)
    print(heard.decode(), end="", flush=True)
"""

IN_PROC: Final = """
import os, sys
os.chdir('/proc')
directory = os.open('/proc/self', os.O_RDONLY | os.O_DIRECTORY)
status = open('/proc/self/status')
for line in sys.stdin:
    status.seek(0)
    name, value = status.readline().split()
    comm = os.open('comm', os.O_RDONLY, dir_fd=directory)
    assert os.read(comm, 99) == value.encode() + b'\\n'
    os.close(comm)
    descriptors = len(os.listdir('/proc/self/fd')) - 1
    goto = os.readlink('goto', dir_fd=directory)
    print(os.readlink('self'), name, value, descriptors, 'hpc' in os.listdir('.'), goto, flush=True)
"""
