"""Says what comes of each line that it reads, an expression: its value, or the name of its errno."""

import ctypes
import errno
import os
import resource
import signal
import subprocess
import sys

_LIBC = ctypes.CDLL(None, use_errno=True)
_GIVEN = {"os": os, "resource": resource, "signal": signal, "subprocess": subprocess, "ctypes": ctypes, "libc": _LIBC}

heard = []
files = []  # what is to stay open
for number in (signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(number, lambda number, frame: heard.append(int(number)))
print(os.getpid(), flush=True)
for line in sys.stdin:
    try:
        value = eval(line, {**_GIVEN, "heard": heard, "files": files})
    except OSError as error:
        value = errno.errorcode[error.errno]
    print(value, flush=True)
