"""Real programs of node 1 on a tree of node 2: what they make must be what they make on a local disk."""

from __future__ import annotations

import json

import pytest

from tests.lab.cluster import Cluster

pytestmark = pytest.mark.lab

C_FILE = "int part{n}(void) {{ return {n}; }}\n"


def test_git_clone_commit_gc_and_fsck(cluster: Cluster) -> None:
    here = cluster.fresh_dir(2)
    cluster.run(
        1,
        f"""
        export HOME=/root GIT_CONFIG_GLOBAL=/root/gitconfig
        git config --global user.name T; git config --global user.email t@example.org
        git init -q -b main /tmp/origin-$$; cd /tmp/origin-$$
        for i in $(seq 60); do mkdir -p d$((i % 9)); seq $i 400 > d$((i % 9))/f$i; done
        git add .; git commit -qm first; git tag -m one v1
        git clone -q /tmp/origin-$$ {here.remote}/clone; cd {here.remote}/clone
        test "$(git status --porcelain)" = ""
        git switch -qc topic; echo more >> d1/f1; git mv d2/f2 d2/renamed; git rm -q d3/f3; git commit -qam second
        git switch -q main; echo other > new; git add new; git commit -qm third; git merge -q --no-edit topic
        git gc -q --prune=now; git repack -adq; git fsck --full --strict
        git push -q origin HEAD:refs/heads/pushed
        test "$(git -C /tmp/origin-$$ rev-parse pushed)" = "$(git rev-parse HEAD)"
        """,
        timeout_s=240,
    )
    log = "git -c safe.directory='*' -C {} log --all --format=%H%T%s"
    status = "git -c safe.directory='*' -C {} status --porcelain"
    assert cluster.run(3, log.format(f"{here.remote}/clone")) == cluster.run(2, log.format(f"{here.native}/clone"))
    assert cluster.run(2, status.format(f"{here.native}/clone")) == ""


def test_a_c_project_is_built_and_runs_on_every_node(cluster: Cluster) -> None:
    here = cluster.fresh_dir(2)
    cluster.run(
        1,
        f"""
        cd {here.remote}
        for n in $(seq 12); do echo "int part$n(void) {{ return $n; }}" > part$n.c; done
        {{ echo '#include <stdio.h>'; for n in $(seq 12); do echo "int part$n(void);"; done
          echo 'int main(void) {{ int s = 0;'; for n in $(seq 12); do echo "s += part$n();"; done
          echo 'printf("%d\\n", s); return 0; }}'; }} > main.c
        printf 'OBJ=$(patsubst %%.c,%%.o,$(wildcard *.c))\\nsum: $(OBJ)\\n\\tcc -o $@ $^\\n' > Makefile
        make -j2 >make.log 2>&1 || {{ cat make.log; exit 1; }}
        ./sum
        make -q sum
        """,
        timeout_s=240,
    )
    assert [cluster.run(node, f"{here.remote}/sum").strip() for node in (1, 2, 3)] == ["78"] * 3


@pytest.mark.parametrize("copy", ["tar", "rsync", "cp"])
def test_archives_keep_everything(cluster: Cluster, copy: str) -> None:
    source, target = cluster.fresh_dir(1), cluster.fresh_dir(2)
    cluster.program(1, "make_tree.py", f"{source.native}/tree")
    command = {
        "tar": f"tar -C {source.native}/tree -cSf - --xattrs --xattrs-include='*' --acls . | "
        f"(mkdir {target.remote}/tree && tar -C {target.remote}/tree -xSpf - --xattrs --xattrs-include='*' --acls)",
        "rsync": f"rsync -aHAXS {source.native}/tree/ {target.remote}/tree/",
        "cp": f"cp -a --sparse=always {source.native}/tree {target.remote}/tree",
    }[copy]
    cluster.run(1, command, timeout_s=240)
    original = cluster.program(1, "manifest.py", f"{source.native}/tree")
    assert original.count("\n") > 60
    assert cluster.program(1, "manifest.py", f"{target.remote}/tree") == original, "as node 1 sees the copy"
    assert cluster.program(2, "manifest.py", f"{target.native}/tree") == original, "as its owner sees the copy"
    back = cluster.fresh_dir(3)
    again = f"rsync -aHAXS {target.remote}/tree/ {back.native}/tree/"
    cluster.run(3, again, timeout_s=240)
    assert cluster.program(3, "manifest.py", f"{back.native}/tree") == original, "and the way back, to a third node"
    assert cluster.run(3, again + " --itemize-changes --checksum", timeout_s=240) == ""


def test_sqlite_writers_on_two_nodes_lose_nothing(cluster: Cluster) -> None:
    here = cluster.fresh_dir(2)
    schema = "CREATE TABLE log (who, number); CREATE TABLE total (value); INSERT INTO total VALUES (0);"
    cluster.run(2, f"sqlite3 {here.native}/db '{schema}'")
    writers = [
        cluster.start_program(node, "sqlite_writer.py", f"{here.remote}/db", f"node{node}", "60") for node in (1, 3)
    ]
    for writer in writers:
        writer.wait_success(timeout_s=240)
    query = "PRAGMA journal_mode; PRAGMA integrity_check; SELECT count(*), count(DISTINCT who||number) FROM log; SELECT value FROM total"
    for node, path in ((1, here.remote), (2, here.native), (3, here.remote)):
        assert cluster.run(node, f"sqlite3 {path}/db '{query}'").split() == ["delete", "ok", "120|120", "120"]


def test_programs_hammer_one_directory_from_three_nodes(cluster: Cluster) -> None:
    here = cluster.fresh_dir(2)
    workers = [
        cluster.start_program(
            1 + seed % 3, "hammer.py", here.remote if seed % 3 != 1 else here.native, str(seed), "250"
        )
        for seed in range(8)
    ]
    for worker in workers:
        outcomes = json.loads(worker.wait_success(timeout_s=240))
        assert outcomes["ok"] > 20, outcomes
        assert set(outcomes) <= {"ok", "ENOENT", "EEXIST"}, outcomes
    listing = "import os,json; print(json.dumps(sorted((n, os.stat(n).st_nlink, os.stat(n).st_size) for n in os.listdir('.'))))"
    views = [
        cluster.run(node, f'cd {path} && python3 -c "{listing}"')
        for node, path in ((1, here.remote), (2, here.native), (3, here.remote))
    ]
    assert views[0] == views[1] == views[2]
    cluster.run(1, f'cd {here.remote} && rm -f n* && test -z "$(ls -A)"')
    assert cluster.run(2, f"ls -A {here.native}") == ""
