"""A guest that does what a test asks it to, wherever it is: programs/asked.py below mosrun."""

from __future__ import annotations

from tests.lab.cluster import PROGRAMS, Cluster

ALICE, BOB = "1001:1001,2000", "1002:1002"


class AskedGuest:
    """*before*: what the shell at home does first, which then stays as the parent of mosrun.

    *by*: nothing, for the same program as no guest.
    """

    def __init__(
        self, cluster: Cluster, home: int = 1, *, user: str = ALICE, before: str = ":", by: str = "mosrun"
    ) -> None:
        self._cluster = cluster
        self.home = home
        self.user = user
        script = f"{before}\necho $$; {by} python3 {PROGRAMS}/asked.py; echo status $?"
        self._process = cluster.lab.popen(home, script, user=user)
        self.shell = int(self.line())
        self.pid = int(self.line())

    def line(self) -> str:
        """The next one that it says."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"it has ended: {self._process.stderr.read() if self._process.stderr else ''}"
        return line.rstrip("\n")

    def say(self, expression: str) -> None:
        """It will have a value, as the guest prints it, or the name of the errno."""
        assert self._process.stdin is not None
        self._process.stdin.write(expression + "\n")
        self._process.stdin.flush()

    def ask(self, expression: str) -> str:
        """Its value."""
        self.say(expression)
        return self.line()

    def move(self, to: int | str) -> None:
        self._cluster.run(self.home, f"migrate {self.pid} {to}", user=self.user)

    def where(self) -> int:
        """0: at home."""
        return int(self._cluster.run(self.home, f"cat /mfs/proc/{self.pid}/where"))

    def end(self) -> str:
        """Its input ends; what the shell says of its status."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        return self.line()
