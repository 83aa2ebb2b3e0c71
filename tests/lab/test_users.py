"""The owner decides as its own kernel would: users, supplementary groups, umask, ACLs, sticky and setgid bits."""

from __future__ import annotations

import pytest

from tests.lab.cluster import Cluster

pytestmark = pytest.mark.lab

ALICE, BOB, CAROL = "1001:1001", "1002:1002", "1003:1003,2000"


def test_who_may_and_who_may_not(cluster: Cluster) -> None:
    here = cluster.fresh_dir(2)
    cluster.run(
        2,
        f"""
        cd {here.native}; chmod 755 .
        mkdir alice shared sticky; chown 1001:1001 alice; chmod 700 alice; chgrp 2000 shared; chmod 2770 shared; chmod 1777 sticky
        echo secret > alice/secret; chown 1001:1001 alice/secret; chmod 600 alice/secret
        echo team > shared/team; chmod 640 shared/team; chgrp 2000 shared/team
        """,
    )

    def may(user: str, command: str) -> bool:
        return cluster.try_run(1, f"cd {here.remote} && {command}", user=user).returncode == 0

    assert may(ALICE, "cat alice/secret")
    assert not may(BOB, "cat alice/secret")
    assert not may(BOB, "ls alice")
    assert not may(CAROL, "cat alice/secret")
    assert may(CAROL, "cat shared/team && touch shared/by-carol")
    assert not may(ALICE, "cat shared/team")
    assert not may(BOB, "ls shared")
    assert may(ALICE, "touch sticky/hers")
    assert not may(BOB, "rm -f sticky/hers && ! test -e sticky/hers")
    assert not may(BOB, "touch refused")
    assert not may(BOB, "chmod 777 sticky/hers")
    assert not may(ALICE, "chown 1002 sticky/hers")
    assert may(ALICE, "test -r alice/secret && ! test -x alice/secret")
    assert not may(BOB, "cd alice")
    made = cluster.run(2, f"stat -c '%u %g' {here.native}/shared/by-carol {here.native}/sticky/hers").split("\n")
    assert made[:2] == ["1003 2000", "1001 1001"]


def test_umask_default_acl_and_setgid(cluster: Cluster) -> None:
    here = cluster.fresh_dir(2)
    cluster.run(1, f"cd {here.remote}; chmod 777 .; mkdir acl; chmod 777 acl; setfacl -m d:u:1002:rwx,d:m::rwx acl")
    cluster.run(1, f"cd {here.remote}; umask 027; touch a; mkdir b; umask 077; touch acl/c", user=ALICE)
    modes = cluster.run(2, f"cd {here.native}; stat -c %a a b; getfacl -cEp acl/c | grep user:1002")
    assert modes.split() == ["640", "750", "user:1002:rwx"]
    assert "user:1002:rw" in cluster.run(3, f"getfacl -cEp {here.remote}/acl/c")
    cluster.run(3, f"echo by-bob >> {here.remote}/acl/c", user=BOB)


def test_a_setuid_bit_does_not_survive_a_strangers_write(cluster: Cluster) -> None:
    here = cluster.fresh_dir(2)
    cluster.run(2, f"cd {here.native}; chmod 777 .; touch tool; chown 1001:1001 tool; chmod 4777 tool")
    cluster.run(1, f"echo x >> {here.remote}/tool", user=BOB)
    assert cluster.run(2, f"stat -c %a {here.native}/tool") == "777\n"


def test_root_squash_and_read_only(cluster: Cluster) -> None:
    cluster.run(
        2,
        "mkdir -p /srv/ro /srv/squash; echo x > /srv/ro/file; chmod 755 /srv/squash; echo s > /srv/squash/s; chmod 600 /srv/squash/s",
    )
    trees = '\n[[trees]]\npath = "/srv/ro"\nread_only = true\n[[trees]]\npath = "/srv/squash"\nroot_squash = true\n'
    with cluster.export_configured(2, trees):
        assert "Read-only" in cluster.try_run(1, "echo y > /mfs/2/srv/ro/file").stderr
        assert "Read-only" in cluster.try_run(1, "touch /mfs/2/srv/ro/new").stderr
        assert cluster.run(1, "cat /mfs/2/srv/ro/file") == "x\n"
        assert "Permission denied" in cluster.try_run(1, "cat /mfs/2/srv/squash/s").stderr
        assert "Permission denied" in cluster.try_run(1, "touch /mfs/2/srv/squash/new").stderr
        assert cluster.try_run(1, "mv /mfs/2/srv/ro/file /mfs/2/tmp/").returncode != 0
    assert cluster.run(1, "cat /mfs/2/srv/squash/s") == "s\n"
