"""tools/criu.py: which CRIU is taken, where packages come from, and all or nothing.  apt is a stand-in here."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from omfs.config import Settings
from omfs.errors import ConfigError
from tests.unit.test_bootstrap import make_program

FILE = Path(__file__).parent.parent.parent / "tools" / "criu.py"

# Says what it was asked, makes packages as apt would, and fails where the test wants it.
APT_GET = """
echo "$@" >> {log}
case "$*" in
  *indextargets*) printf '{targets}'; exit 0;;
  *forky*) ;;
esac
for word in "$@"; do case $word in -oDir::Etc::SourceList=*) sources=${{word#*=}};; esac; done
read -r _ _ mirror suite _ < $sources
echo "$mirror $suite" >> {log}
[ "$suite" = "{good}" ] || {{ echo "E: The repository '$mirror $suite' does not have a Release file." >&2; exit 100; }}
case "$*" in *download-only*) touch ${{sources%/*}}/archives/criu_1.deb ${{sources%/*}}/archives/libc_2.deb;; esac
"""
DPKG_DEB = """
[ "$1" = -x ] || exit 2
echo "unpacked ${2##*/}" >> %s
mkdir -p $3/usr/sbin $3/usr/share/doc
echo $2 > $3/usr/sbin/criu
"""
TARGETS = "http://mirror/debian/ bookworm main\\nhttp://security/ bookworm-security main\\nhttp://x/ bookworm extra\\n"


@pytest.fixture
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("criu_tool", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Machine:
    """A Debian with apt-get and dpkg-deb of ours; *good* is the suite that its mirror has."""

    def __init__(self, tool: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log = folder / "log"
        self.bin = folder / "bin"
        self.prefix = folder / "venv" / "criu"
        self.prefix.parent.mkdir()
        (folder / "keyring").touch()
        monkeypatch.setenv("PATH", str(self.bin), prepend=":")
        monkeypatch.setattr(tool, "PRIVATE_PREFIX", self.prefix)
        monkeypatch.setattr(tool, "KEYRING", folder / "keyring")
        monkeypatch.setattr(tool, "mirrors", lambda: ["http://mirror/debian/"])
        monkeypatch.setattr(tool, "installed_in", lambda prefix: prefix)
        monkeypatch.setattr(tool, "version_of", lambda criu: (4, 2, 1))
        make_program(self.bin / "dpkg-deb", DPKG_DEB % self.log)
        self.has("forky")

    def has(self, good: str) -> None:
        make_program(self.bin / "apt-get", APT_GET.format(log=self.log, good=good, targets=TARGETS))

    def lines(self) -> list[str]:
        return self.log.read_text().splitlines()


@pytest.fixture
def machine(tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tool, tmp_path, monkeypatch)


def test_all_that_apt_fetched_is_unpacked_below_the_prefix(tool: ModuleType, machine: Machine) -> None:
    tool.install_privately()
    assert [line for line in machine.lines() if line.startswith("unpacked")] == [
        "unpacked criu_1.deb", "unpacked libc_2.deb",
    ]  # fmt: skip
    assert sorted(path.name for path in machine.prefix.iterdir()) == ["usr"]
    assert sorted(path.name for path in (machine.prefix / "usr").iterdir()) == ["sbin"]
    assert [path.name for path in machine.prefix.parent.iterdir()] == ["criu"], "nothing half-made is left"


def test_apt_is_shown_nothing_of_the_system(tool: ModuleType, machine: Machine) -> None:
    tool.install_privately()
    state = f"{machine.prefix.with_name('criu.new')}/apt"
    for line in (line for line in machine.lines() if "-qq" in line):
        for name in ("Dir::State", "Dir::State::Lists", "Dir::State::Status", "Dir::Cache", "Dir::Cache::Archives"):
            assert f"-o{name}={state}" in line
        assert f"-oDir::Etc::SourceList={state}/sources.list" in line
        for name in ("SourceParts", "Preferences", "PreferencesParts"):
            assert f"-oDir::Etc::{name}=/dev/null" in line
        assert "allow-unauthenticated" not in line.lower()


def test_the_next_suite_where_the_first_is_not_there(tool: ModuleType, machine: Machine) -> None:
    machine.has("sid")
    tool.install_privately()
    assert "http://mirror/debian/ forky" in machine.lines()
    assert machine.lines()[-1] == "unpacked libc_2.deb"
    assert (machine.prefix / "usr/sbin/criu").exists()


def test_no_suite_says_what_to_do_and_leaves_the_old_one(
    tool: ModuleType, machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.has("none")
    machine.prefix.mkdir()
    with pytest.raises(SystemExit):
        tool.install_privately()
    said = capsys.readouterr().err
    assert "apt-get update (forky): E: The repository" in said
    assert "apt-get update (sid): E: The repository" in said
    assert "check the network and the package sources, then repeat; or install CRIU >= 4.2 yourself" in said
    assert [path.name for path in machine.prefix.parent.iterdir()] == ["criu"]


@pytest.mark.parametrize(
    ("version", "says"), [((4, 1, 1), "that is only 4.1.1; needed: 4.2"), (None, "what was unpacked does not run: bad")]
)
def test_what_does_not_do_is_not_put_in_place(
    tool: ModuleType,
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    version: tuple[int, ...] | None,
    says: str,
) -> None:
    def version_of(criu: object) -> tuple[int, ...]:
        if version is None:
            raise ConfigError("bad")
        return version

    monkeypatch.setattr(tool, "version_of", version_of)
    with pytest.raises(SystemExit):
        tool.install_privately()
    assert says in capsys.readouterr().err
    assert list(machine.prefix.parent.iterdir()) == []


def test_without_debians_keys_nothing_is_fetched(
    tool: ModuleType, machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tool, "KEYRING", machine.prefix / "nowhere")
    with pytest.raises(SystemExit):
        tool.install_privately()
    assert "`apt-get install debian-archive-keyring`" in capsys.readouterr().err
    assert not machine.log.exists()


def test_the_one_named_in_the_settings_counts(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(tool, "load_settings", lambda: Settings(criu="/opt/criu"))
    monkeypatch.setattr(tool, "find_criu", asked.append)
    monkeypatch.setattr(tool, "version_of", lambda criu: (4, 2))
    assert tool.is_new_enough()
    assert asked == ["/opt/criu"]
    monkeypatch.setattr(tool, "version_of", lambda criu: (4, 1, 9))
    assert not tool.is_new_enough()


@pytest.mark.parametrize(
    ("present", "candidate", "done"),
    [
        (True, "4.1-1", []),
        (False, "4.2-1", ["distribution"]),
        (False, "10.0+dfsg-1", ["distribution"]),
        (False, "3.17.1-2+deb12u2", ["private"]),
        (False, "(none)", ["private"]),
    ],
)
def test_which_one_is_taken(
    tool: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    present: bool,
    candidate: str,
    done: list[str],
) -> None:
    make_program(tmp_path / "apt-cache", f"echo 'criu:'; echo '  Installed: (none)'; echo '  Candidate: {candidate}'")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    took: list[str] = []
    monkeypatch.setattr(tool, "is_new_enough", lambda: present)
    monkeypatch.setattr(tool, "install_distribution_package", lambda: took.append("distribution"))
    monkeypatch.setattr(tool, "install_privately", lambda: took.append("private"))
    tool.main()
    assert took == done


def test_mirrors_are_those_of_debian_itself(
    tool: ModuleType, machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("PATH", str(machine.bin), prepend=":")
    release = tmp_path / "os-release"
    monkeypatch.setattr(tool, "OS_RELEASE", release)
    release.write_text('ID=debian\nVERSION_CODENAME=bookworm\nNAME="Debian GNU/Linux"\n')
    assert tool.mirrors() == ["http://mirror/debian/"]
    release.write_text('ID="ubuntu"\nVERSION_CODENAME=noble\n')
    assert tool.mirrors() == []
