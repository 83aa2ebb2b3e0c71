"""Insert rows in small transactions: sqlite_writer.py DATABASE WHO COUNT."""

import sqlite3
import sys


def main() -> None:
    path, who, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    database = sqlite3.connect(path, timeout=120, isolation_level=None)
    for number in range(count):
        database.execute("BEGIN IMMEDIATE")
        database.execute("INSERT INTO log (who, number) VALUES (?, ?)", (who, number))
        database.execute("UPDATE total SET value = value + 1")
        database.execute("COMMIT")
    database.close()


main()
