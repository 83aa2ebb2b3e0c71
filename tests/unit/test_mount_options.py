"""What `mount -o` may say."""

from __future__ import annotations

from pathlib import Path

import pytest

from omfs.errors import ConfigError
from omfs.mount.options import MS_FLAGS, MountOptions, parse, refused_at_remount, settings_for


def options(*texts: str) -> MountOptions:
    return parse("mfs_mnt", "/mfs", list(texts))


def test_own_options_are_taken() -> None:
    said = options("dfsa=1,hard,timeo=2.5,port=7723", "sec=none,map=/m,run_dir=/r,state_dir=/s,address=10.0.0.1")
    assert (said.dfsa, said.hard, said.timeo_s, said.port, said.sec) == (True, True, 2.5, 7723, "none")
    assert (said.map, said.run_dir, said.state_dir, said.address) == ("/m", "/r", "/s", "10.0.0.1")
    assert said.given == {"dfsa", "hard", "timeo", "port", "sec", "map", "run_dir", "state_dir", "address"}


def test_the_last_word_counts() -> None:
    said = options("hard,ro,soft,dfsa=1", "dfsa=0,rw")
    assert not said.hard
    assert not said.dfsa
    assert not said.read_only


@pytest.mark.parametrize(
    "words",
    [
        "defaults,_netdev,nofail,noauto,x-systemd.automount,x-mount.mkdir=0755,user,users,group,owner",
        "rw,nosuid,nodev,relatime,user_id=0,group_id=0,allow_other,max_read=131072",  # as the kernel lists a mount
        "user=joe,uhelper=systemd,comment=hello,X-gvfs,fsname=mfs_mnt,subtype=omfs",
        "",
        ",,rw,,",
    ],
)
def test_words_of_fstab_and_the_kernel_pass(words: str) -> None:
    assert options(words).own() == options().own()


@pytest.mark.parametrize(
    ("words", "set_flags", "cleared"),
    [
        ("", {"nosuid", "nodev"}, {"ro", "noexec"}),
        ("suid", {"nodev"}, {"nosuid"}),
        ("dev", {"nodev"}, set()),  # never devices of another machine
        ("ro,noexec,noatime", {"ro", "noexec", "noatime"}, set()),
        ("noatime,atime,ro,rw,noexec,exec", {"nosuid"}, {"noatime", "ro", "noexec"}),
    ],
)
def test_kernel_flags(words: str, set_flags: set[str], cleared: set[str]) -> None:
    flags = options(words).kernel_flags
    assert {name for name in set_flags | cleared if flags & MS_FLAGS[name]} == set_flags


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("dsfa=1", 'unknown option "dsfa=1"'),
        ("soft=1", 'unknown option "soft=1"'),
        ("dfsa", "needs a value: dfsa=0 or 1"),
        ("dfsa=yes", 'dfsa is 0 or 1, not "yes"'),
        ("timeo=0", 'timeo is a number of seconds from 0.1 to 86400, not "0"'),
        ("timeo=nan", "timeo is a number"),
        ("timeo=soon", "timeo is a number"),
        ("port=0", "port is a TCP port"),
        ("port=65536", "port is a TCP port"),
        ("port=\u0663", "port is a TCP port"),
        ("sec=ssl", 'sec is tls or none, not "ssl"'),
        ("map=relative", "map is an absolute path"),
        ("address=", "address needs a value"),
    ],
)
def test_a_wrong_option_is_one_line_that_names_it(word: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told.replace("(", r"\(")) as refused:
        options("rw," + word)
    assert "\n" not in str(refused.value)


def test_sloppy_lets_unknown_words_pass_but_not_wrong_values() -> None:
    assert parse("s", "/m", ["whatever,dfsa=1"], sloppy=True).dfsa
    with pytest.raises(ConfigError, match="dfsa"):
        parse("s", "/m", ["dfsa=2"], sloppy=True)


def test_options_override_the_settings_file(tmp_path: Path) -> None:
    file = tmp_path / "omfs.toml"
    file.write_text('port = 1000\nsec = "none"\ntimeo_s = 3.0\n')
    settings = settings_for(options(f"config={file},port=2000,timeo=4"))
    assert (settings.port, settings.sec, settings.timeo_s) == (2000, "none", 4.0)


def test_a_missing_settings_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        settings_for(options(f"config={tmp_path}/none.toml"))


def test_remount_changes_only_the_kernels_flags() -> None:
    running = options("dfsa=1,timeo=5").own()
    assert refused_at_remount(options("remount,ro"), running) == ""
    assert refused_at_remount(options("remount,ro,dfsa=1,timeo=5"), running) == ""  # fstab repeats them
    assert refused_at_remount(options("remount,dfsa=0"), running) == "dfsa"
    assert refused_at_remount(options("remount,hard"), running) == "hard"
    assert refused_at_remount(options("remount,soft"), running) == ""
    assert refused_at_remount(options("remount,dfsa=1"), None) == "dfsa"  # unknown what runs
    assert options("remount,ro").remount


def test_what_the_options_leave_out_the_settings_file_decides(tmp_path: Path) -> None:
    file = tmp_path / "omfs.toml"
    file.write_text("timeo_s = 30.0\nping_interval_s = 5.0\n")
    settings = settings_for(options(f"config={file}"))
    assert (settings.timeo_s, settings.ping_interval_s) == (30.0, 5.0)
