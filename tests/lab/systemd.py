"""A real systemd as the service manager of a lab node, with what is installed there and Debian's own targets.

It is PID 1 of a PID namespace inside the node's, in a control group of its own, and sees no units but ours, those that
its generators make of /etc/fstab, and the targets that ours name: nothing of the machine is set up or started by it.
Used by test_services.py.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator

from tests.lab.cluster import Cluster, wait_until
from tests.lab.livelab import COMMAND

TARGETS = (
    "sysinit.target", "basic.target", "multi-user.target", "remote-fs.target", "remote-fs-pre.target",
    "network-online.target", "network.target", "local-fs.target", "shutdown.target", "umount.target",
)  # fmt: skip
LOG = "/var/log/services.log"
GROUP = "/sys/fs/cgroup/omfs-test-$$"

OUTER = f"""
mkdir -p /run/test-units
for unit in {" ".join(TARGETS)}; do cp /usr/lib/systemd/system/$unit /run/test-units/; done
cat > /run/boot-inner <<'END'
mount --make-rshared /
mount -t tmpfs none /etc/systemd/system
mkdir /etc/systemd/system/service.d /etc/systemd/system/multi-user.target.wants
ln -s ../remote-fs.target /etc/systemd/system/multi-user.target.wants/
printf '[Service]\\nStandardOutput=append:{LOG}\\nStandardError=append:{LOG}\\n' > /etc/systemd/system/service.d/log.conf
umount /sys/fs/cgroup
exec unshare --cgroup sh -c 'mount -t cgroup2 none /sys/fs/cgroup && exec /usr/lib/systemd/systemd --system \\
    --unit=multi-user.target --log-target=console --show-status=no'
END
mkdir -p /sys/fs/cgroup
mount -t cgroup2 none /sys/fs/cgroup
group={GROUP}
mkdir $group
export container=lab group
export SYSTEMD_UNIT_PATH=/etc/systemd/system:/run/test-units:/run/systemd/generator:/usr/local/lib/systemd/system
unshare --fork --kill-child --pid --mount --mount-proc sh -c 'echo 0 > $group/cgroup.procs; . /run/boot-inner' \\
    > {LOG} 2>&1 < /dev/null &
echo $! > /run/systemd-outside
read -r _ || true
kill -KILL $(pgrep -P $!) || true
wait || true
until find $group -depth -type d -exec rmdir {{}} +; do sleep 0.1; done
umount /sys/fs/cgroup
echo ended
"""


class Systemd:
    """The node's systemd, and programs beside it."""

    def __init__(self, cluster: Cluster, node: int) -> None:
        self._cluster, self.node = cluster, node

    def try_run(self, script: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
        """As Cluster.try_run, in the namespaces of systemd."""
        entered = "nsenter -t $(pgrep -P $(cat /run/systemd-outside)) -m -p -C"
        return self._cluster.try_run(
            self.node, f"{entered} bash -euo pipefail <<'INSIDE'\n{script}\nINSIDE", timeout_s=timeout_s
        )

    def run(self, script: str, timeout_s: float = 120) -> str:
        """It must succeed; what it printed."""
        done = self.try_run(script, timeout_s)
        if done.returncode:
            log = self._cluster.run(self.node, f"cat {LOG}")
            raise AssertionError(f"status {done.returncode}\n{script}\n{done.stderr}{done.stdout}\n{log}")
        return done.stdout

    def show(self, unit: str, what: str) -> str:
        return self.run(f"systemctl show --value -p {what} {unit}").strip()

    def wait_state(self, unit: str, state: str) -> None:
        try:
            wait_until(lambda: self.show(unit, "ActiveState") == state, f"{unit} is {state}")
        except AssertionError as error:
            error.add_note(self.try_run(f"systemctl status {unit}; cat {LOG}").stdout)
            raise


@contextlib.contextmanager
def systemd_on(cluster: Cluster, node: int) -> Iterator[Systemd]:
    """The node boots into systemd, which is ready; afterwards all that it started is gone."""
    process = subprocess.Popen(  # not Lab.popen: what that starts ends with the test
        [*COMMAND, "exec", "--name", cluster.lab.name, str(node), "--", "bash", "-euc", OUTER],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    manager = Systemd(cluster, node)
    try:

        def answers() -> bool:
            assert process.poll() is None, process.stderr.read() if process.stderr else ""
            return manager.try_run("systemctl is-system-running").stdout.strip() in ("running", "degraded")

        wait_until(answers, "systemd answers")
        yield manager
    finally:
        try:
            out, err = process.communicate("\n", timeout=120)
        finally:
            process.kill()
            process.wait()
        assert out.endswith("ended\n"), f"{out}{err}"
