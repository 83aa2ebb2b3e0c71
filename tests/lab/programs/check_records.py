"""Check what appender.py wrote: check_records.py FILE COUNT WHO...; prints ok or says what is wrong."""

import sys


def main() -> None:
    path, count, names = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
    seen: dict[str, int] = dict.fromkeys(names, 0)
    with open(path, "rb") as file:
        for line in file:
            who, number, length, rest = line.decode().rstrip("\n").split(" ", 3)
            if rest != who * int(length):
                raise SystemExit(f"record {who} {number} is torn")
            if seen[who] != int(number):
                raise SystemExit(f"{who}: record {number} where {seen[who]} was due")
            seen[who] += 1
    if any(got != count for got in seen.values()):
        raise SystemExit(f"records lost: {seen}")
    print("ok")


main()
