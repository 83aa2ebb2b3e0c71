"""A file that stays open while it is written, call by call: keptopen.py FILE [create].

Each line on standard input is a JSON list: ["write", text], ["fill", bytes, times], ["sync"], ["close"], ["read"].  The
answer is what the call returned, or the name of its errno.  "fill" writes blocks until one fails, and says how many
bytes were taken and what the error was (null: none).
"""

import errno
import json
import os
import sys


class Kept:
    def __init__(self, path: str, flags: int) -> None:
        self._fd = os.open(path, os.O_RDWR | flags, 0o644)

    def write(self, text: str) -> int:
        return os.write(self._fd, text.encode())

    def fill(self, size_bytes: int, times: int) -> tuple[int, str | None]:
        taken = 0
        for number in range(times):
            try:
                taken += os.write(self._fd, bytes([number % 251]) * size_bytes)
            except OSError as error:
                return taken, errno.errorcode[error.errno or 0]
        return taken, None

    def sync(self) -> None:
        os.fsync(self._fd)

    def close(self) -> None:
        os.close(self._fd)

    def read(self) -> str:
        return os.pread(self._fd, 1 << 20, 0).decode()


def main() -> None:
    kept = Kept(sys.argv[1], os.O_CREAT | os.O_EXCL if sys.argv[2:] == ["create"] else 0)
    print(json.dumps("open"), flush=True)
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        try:
            answer = getattr(kept, name)(*arguments)
        except OSError as error:
            answer = errno.errorcode[error.errno or 0]
        print(json.dumps(answer), flush=True)


main()
