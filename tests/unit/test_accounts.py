"""Users and groups as nodes compare them."""

from __future__ import annotations

from pathlib import Path

from omfs.export.accounts import TOLD_MAX_BYTES, AccountFile, parse_accounts

PASSWD = b"""\
root:x:0:0:root:/root:/bin/bash
anna:x:1001:1001:Anna:/home/anna:/bin/sh
anna:x:1002:1001:twice:/home/anna:/bin/sh
# comment:x:1:1
+@netgroup:x:5:5
-bad:x:6:6
:x:7:7

short:x
words:x:many:1
"""


def test_names_and_numbers() -> None:
    assert parse_accounts(PASSWD) == ((b"anna", 1001), (b"root", 0))
    assert parse_accounts(b"") == ()
    assert parse_accounts(b"staff:*:50:anna,bert\n") == ((b"staff", 50),)


def test_only_names_and_numbers_count(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_bytes(b"anna:x:1001:1001::/home/anna:\nbert:x:1002:1002:::\n")
    other.write_bytes(b"bert:*:1002:9:B.::/bin/sh\nanna:!:1001:8:::\n")
    assert AccountFile(one).digest == AccountFile(other).digest
    other.write_bytes(b"bert:*:1003:9:::\nanna:!:1001:8:::\n")
    assert AccountFile(one).digest != AccountFile(other).digest


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "passwd"
    accounts = AccountFile(path)
    assert (accounts.digest, accounts.told()) == (b"", ())
    path.write_text("anna:x:1001:1\n")
    before = accounts.digest
    assert accounts.told() == ((b"anna", 1001),)
    new = tmp_path / "new"
    new.write_text("anna:x:1002:1\n")
    new.replace(path)
    assert accounts.told() == ((b"anna", 1002),)
    assert accounts.digest != before


def test_too_many_to_tell(tmp_path: Path) -> None:
    path = tmp_path / "passwd"
    path.write_text("".join(f"user{number:028d}:x:{number}:1\n" for number in range(TOLD_MAX_BYTES // 40 + 1)))
    assert AccountFile(path).told() == ()
    assert len(AccountFile(path).digest) == 16
