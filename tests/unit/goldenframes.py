"""One frame of every message, byte by byte (test_wire.py).

Golden bytes that change mean another protocol: raise wire.PROTOCOL_VERSION with them.
"""

from __future__ import annotations

from omfs import wire

CALLER = wire.Caller(uid=1000, gid=1000, groups=(24, 1000))
ATTRIBUTES = wire.Attributes(
    mode=0o100644,
    nlink=1,
    uid=1000,
    gid=1000,
    rdev=0,
    size_bytes=5,
    blocks=8,
    block_size_bytes=4096,
    atime_ns=1_700_000_000_000_000_001,
    mtime_ns=-1,
    ctime_ns=0,
    inode=2**64 - 1,
)

# Each a whole frame with id 0x0102: header (meta bytes, bulk bytes, id) and message.
GOLDEN: list[tuple[wire.Message, str]] = [
    (
        wire.AttachTree(caller=CALLER),
        "1800000000000000020100000000000092aa4174746163685472656593cd03e8cd03e89218cd03e8",
    ),
    (
        wire.LookUp(parent=b"dir", name=b"caf\xe9", caller=CALLER),
        "1f00000000000000020100000000000094a64c6f6f6b5570c403646972c404636166e993cd03e8cd03e89218cd03e8",
    ),
    (
        wire.MakeNode(parent=b"dir", name=b"fifo", mode=0o10644, umask=0o22, caller=CALLER),
        "2500000000000000020100000000000096a84d616b654e6f6465c403646972c4046669666fcd11a41293cd03e8cd03e89218cd03e8",
    ),
    (
        wire.MakeDirectory(parent=b"dir", name=b"new", mode=0o755, umask=0o22, caller=CALLER),
        "2900000000000000020100000000000096ad4d616b654469726563746f7279c403646972c4036e6577cd01ed1293cd03e8cd"
        "03e89218cd03e8",
    ),
    (
        wire.MakeSymlink(parent=b"dir", name=b"link", target=b"../x", caller=CALLER),
        "2a00000000000000020100000000000095ab4d616b6553796d6c696e6bc403646972c4046c696e6bc4042e2e2f7893cd03e8"
        "cd03e89218cd03e8",
    ),
    (
        wire.MakeLink(handle=b"file", parent=b"dir", name=b"second", caller=CALLER),
        "2900000000000000020100000000000095a84d616b654c696e6bc40466696c65c403646972c4067365636f6e6493cd03e8cd"
        "03e89218cd03e8",
    ),
    (
        wire.RemoveName(parent=b"dir", name=b"old", directory=True, caller=CALLER),
        "2300000000000000020100000000000095aa52656d6f76654e616d65c403646972c4036f6c64c393cd03e8cd03e89218cd03e8",
    ),
    (
        wire.RenameName(parent=b"dir", name=b"a", new_parent=b"dir2", new_name=b"b", flags=2, caller=CALLER),
        "2a00000000000000020100000000000097aa52656e616d654e616d65c403646972c40161c40464697232c401620293cd03e8"
        "cd03e89218cd03e8",
    ),
    (
        wire.ReadLink(handle=b"link", caller=CALLER),
        "1c00000000000000020100000000000093a8526561644c696e6bc4046c696e6b93cd03e8cd03e89218cd03e8",
    ),
    (
        wire.GetAttributes(handle=b"file"),
        "1500000000000000020100000000000092ad47657441747472696275746573c40466696c65",
    ),
    (
        wire.SetAttributes(handle=b"file", caller=CALLER, open_id=7, size_bytes=1 << 33, atime_ns=-1, mtime_now=True),
        "320000000000000002010000000000009cad53657441747472696275746573c40466696c6593cd03e8cd03e89218cd03e807"
        "c0c0c0cf0000000200000000ffc0c2c3",
    ),
    (
        wire.CheckAccess(handle=b"file", mask=6, caller=CALLER),
        "2000000000000000020100000000000094ab436865636b416363657373c40466696c650693cd03e8cd03e89218cd03e8",
    ),
    (
        wire.StatFilesystem(handle=b"file"),
        "1600000000000000020100000000000092ae5374617446696c6573797374656dc40466696c65",
    ),
    (
        wire.GetXattr(handle=b"file", name=b"user.k", caller=CALLER),
        "2400000000000000020100000000000094a84765745861747472c40466696c65c406757365722e6b93cd03e8cd03e89218cd03e8",
    ),
    (
        wire.SetXattr(handle=b"file", name=b"user.k", value=b"\0v", flags=1, caller=CALLER),
        "2900000000000000020100000000000096a85365745861747472c40466696c65c406757365722e6bc40200760193cd03e8cd"
        "03e89218cd03e8",
    ),
    (
        wire.ListXattrs(handle=b"file", caller=CALLER),
        "1e00000000000000020100000000000093aa4c697374586174747273c40466696c6593cd03e8cd03e89218cd03e8",
    ),
    (
        wire.RemoveXattr(handle=b"file", name=b"user.k", caller=CALLER),
        "2700000000000000020100000000000094ab52656d6f76655861747472c40466696c65c406757365722e6b93cd03e8cd03e8"
        "9218cd03e8",
    ),
    (
        wire.OpenFile(handle=b"file", flags=0, caller=CALLER, reclaim=False, execute=True),
        "2000000000000000020100000000000097a84f70656e46696c65c40466696c650093cd03e8cd03e89218cd03e8c2c3c2",
    ),
    (
        wire.CreateFile(parent=b"dir", name=b"new", mode=0o644, umask=0o22, flags=0o302, caller=CALLER),
        "2800000000000000020100000000000097aa43726561746546696c65c403646972c4036e6577cd01a412ccc293cd03e8cd03"
        "e89218cd03e8",
    ),
    (
        wire.ReadBlocks(open_id=(5 << 32) | 1, offset=1 << 40, size_bytes=1 << 20),
        "2300000000000000020100000000000094aa52656164426c6f636b73cf0000000500000001cf0000010000000000ce00100000",
    ),
    (
        wire.WriteBlocks(open_id=7, offset=4096, kill_set_id=True, behind=True),
        "1300000000000000020100000000000095ab5772697465426c6f636b7307cd1000c3c3",
    ),
    (
        wire.AppendBlocks(open_id=7, kill_set_id=True, behind=True),
        "1100000000000000020100000000000094ac417070656e64426c6f636b7307c3c3",
    ),
    (
        wire.TellHeld(part=1, parts=3),
        "0c00000000000000020100000000000093a854656c6c48656c640103",
    ),
    (
        wire.AuditHeld(start=50, count=25, seed=2**32 - 1, handles=(b"file",)),
        "1900000000000000020100000000000095a9417564697448656c643219ceffffffff91c40466696c65",
    ),
    (
        wire.AskLease(open_id=7),
        "0b00000000000000020100000000000092a841736b4c6561736507",
    ),
    (
        wire.CloseFile(open_id=7),
        "0c00000000000000020100000000000092a9436c6f736546696c6507",
    ),
    (
        wire.CloseFiles(open_ids=(7, 8)),
        "0f00000000000000020100000000000092aa436c6f736546696c6573920708",
    ),
    (
        wire.SyncFile(open_id=7, data_only=True),
        "0c00000000000000020100000000000093a853796e6346696c6507c3",
    ),
    (
        wire.AllocateSpace(open_id=7, mode=3, offset=0, size_bytes=4096),
        "1500000000000000020100000000000095ad416c6c6f636174655370616365070300cd1000",
    ),
    (
        wire.SeekFile(open_id=7, offset=0, whence=3),
        "0d00000000000000020100000000000094a85365656b46696c65070003",
    ),
    (
        wire.CopyRange(source_open_id=7, source_offset=0, target_open_id=8, target_offset=4096, size_bytes=512),
        "1400000000000000020100000000000096a9436f707952616e6765070008cd1000cd0200",
    ),
    (
        wire.OpenDirectory(handle=b"dir", caller=CALLER),
        "2000000000000000020100000000000093ad4f70656e4469726563746f7279c40364697293cd03e8cd03e89218cd03e8",
    ),
    (
        wire.ReadDirectory(open_id=7, cursor=2**63 - 1, size_bytes=131072, bare=True),
        "1f00000000000000020100000000000095ad526561644469726563746f727907cf7fffffffffffffffce00020000c3",
    ),
    (
        wire.LockFile(open_id=7, operation=2, wait=True),
        "0e00000000000000020100000000000095a84c6f636b46696c650702c3c0",
    ),
    (
        wire.LockRange(open_id=7, owner=2**64 - 1, kind=1, start=0, end=2**63 - 1, pid=42, wait=False),
        "2300000000000000020100000000000099a94c6f636b52616e676507cfffffffffffffffff0100cf7fffffffffffffff2ac2c0",
    ),
    (
        wire.ProbeRange(open_id=7, owner=9, kind=0, start=1, end=2),
        "1100000000000000020100000000000096aa50726f626552616e67650709000102",
    ),
    (
        wire.ReleaseLocks(open_id=7, owner=9),
        "1000000000000000020100000000000093ac52656c656173654c6f636b730709",
    ),
    (
        wire.ReturnLeases(leases=((b"file", 7), (b"dir", 8)), everything=True),
        "1f00000000000000020100000000000093ac52657475726e4c65617365739292c40466696c650792c40364697208c3",
    ),
    (
        wire.RecallLease(handle=b"file", serial=300, mode=wire.Mode.SHARED),
        "1700000000000000020100000000000094ab526563616c6c4c65617365c40466696c65cd012c01",
    ),
    (
        wire.RecallNames(handle=b"dir", serial=2**32, names=(b"a", b"caf\xe9")),
        "2500000000000000020100000000000094ab526563616c6c4e616d6573c403646972cf000000010000000092c40161c404636166e9",
    ),
    (
        wire.RecallAll(serial=9),
        "0c00000000000000020100000000000092a9526563616c6c416c6c09",
    ),
    (
        wire.Hello(
            version=1,
            software="omfs 0.1.0",
            node_id=1,
            wanted_node_id=2,
            dfsa=True,
            map_digest=b"d" * 4,
            session=b"s" * 4,
            lane=wire.Lane.BULK,
        ),
        "2300000000000000020100000000000099a548656c6c6f01aa6f6d667320302e312e300102c3c40464646464c4047373737301",
    ),
    (
        wire.Ping(),
        "0600000000000000020100000000000091a450696e67",
    ),
    (
        wire.CancelRequest(request_id=99),
        "1000000000000000020100000000000092ad43616e63656c5265717565737463",
    ),
    (
        wire.DescribeNode(accounts=True),
        "0f00000000000000020100000000000092ac44657363726962654e6f6465c3",
    ),
    (
        wire.Failed(errno=2, text="no such file", open_lost=True),
        "1700000000000000020100000000008094a64661696c656402ac6e6f20737563682066696c65c3",
    ),
    (
        wire.Welcomed(version=1, software="omfs 0.1.0", node_id=2, instance=b"i" * 4, resumed=True, lease_term_s=12.0),
        "2700000000000000020100000000008097a857656c636f6d656401aa6f6d667320302e312e3002c40469696969c3cb402800"
        "0000000000",
    ),
    (
        wire.Refused(reason="the maps differ", nomfs=True),
        "1a00000000000000020100000000008093a752656675736564af746865206d61707320646966666572c3",
    ),
    (
        wire.Ponged(),
        "0800000000000000020100000000008091a6506f6e676564",
    ),
    (
        wire.Done(),
        "0600000000000000020100000000008091a4446f6e65",
    ),
    (
        wire.NodeDescribed(
            software="omfs 0.1.0",
            version=1,
            node_id=2,
            hostname="n2",
            uptime_s=1.5,
            clock_ns=10**18,
            exports=(wire.ExportInfo(path=b"/", read_only=False, root_squash=True),),
            sessions=1,
            requests=2,
            bytes_in=3,
            bytes_out=4,
            standing=wire.Standing(
                map_digest=b"m" * 4,
                dfsa=True,
                certificate_expires_s=1_900_000_000,
                users_digest=b"u" * 4,
                groups_digest=b"g" * 4,
                users=((b"anna", 1001),),
                groups=((b"staff", 50),),
            ),
        ),
        "6a0000000000000002010000000000809dad4e6f6465446573637269626564aa6f6d667320302e312e300102a26e32cb3ff8"
        "000000000000cf0de0b6b3a76400009193c4012fc2c30102030497c4046d6d6d6dc3ce713fb300c40475757575c404676767"
        "679192c404616e6e61cd03e99192c405737461666632",
    ),
    (
        wire.Found(
            handle=b"file",
            attributes=ATTRIBUTES,
            serial=300,
            mode=wire.Mode.SHARED,
            parent_mode=wire.Mode.EXCLUSIVE,
            parent=ATTRIBUTES,
            lists_all=True,
        ),
        "5d00000000000000020100000000008098a5466f756e64c40466696c659ccd81a401cd03e8cd03e8000508cd1000cf17979c"
        "fe362a0001ff00cfffffffffffffffffcd012c01029ccd81a401cd03e8cd03e8000508cd1000cf17979cfe362a0001ff00cf"
        "ffffffffffffffffc3",
    ),
    (
        wire.NameMissing(serial=301, parent_mode=wire.Mode.SHARED),
        "1100000000000000020100000000008093ab4e616d654d697373696e67cd012d01",
    ),
    (
        wire.NamesChanged(parents=(ATTRIBUTES,), serial=307, modes=(wire.Mode.SHARED,)),
        "3900000000000000020100000000008094ac4e616d65734368616e676564919ccd81a401cd03e8cd03e8000508cd1000cf17"
        "979cfe362a0001ff00cfffffffffffffffffcd01339101",
    ),
    (
        wire.AttributesGot(attributes=ATTRIBUTES, serial=302, mode=wire.Mode.SHARED),
        "3800000000000000020100000000008094ad41747472696275746573476f749ccd81a401cd03e8cd03e8000508cd1000cf17"
        "979cfe362a0001ff00cfffffffffffffffffcd012e01",
    ),
    (
        wire.LinkRead(target=b"../x"),
        "1000000000000000020100000000008092a84c696e6b52656164c4042e2e2f78",
    ),
    (
        wire.FilesystemStatted(
            block_size_bytes=4096,
            fragment_size_bytes=4096,
            blocks=100,
            blocks_free=50,
            blocks_available=40,
            files=30,
            files_free=20,
            files_available=10,
            name_max=255,
        ),
        "210000000000000002010000000000809ab146696c6573797374656d53746174746564cd1000cd10006432281e140accff",
    ),
    (
        wire.XattrGot(value=b"\0v"),
        "0e00000000000000020100000000008092a85861747472476f74c4020076",
    ),
    (
        wire.XattrsListed(names=(b"user.k", b"user.l")),
        "1f00000000000000020100000000008092ac5861747472734c697374656492c406757365722e6bc406757365722e6c",
    ),
    (
        wire.FileOpened(open_id=7, serial=303, mode=wire.Mode.SHARED, data=True),
        "1200000000000000020100000000008095aa46696c654f70656e656407cd012f01c3",
    ),
    (
        wire.FileCreated(
            open_id=7,
            handle=b"file",
            attributes=ATTRIBUTES,
            serial=304,
            mode=wire.Mode.EXCLUSIVE,
            parent_mode=wire.Mode.SHARED,
            data=True,
            bare=wire.Bare.OF_ALL,
            parent=ATTRIBUTES,
        ),
        "650000000000000002010000000000809aab46696c654372656174656407c40466696c659ccd81a401cd03e8cd03e8000508"
        "cd1000cf17979cfe362a0001ff00cfffffffffffffffffcd01300201c3029ccd81a401cd03e8cd03e8000508cd1000cf1797"
        "9cfe362a0001ff00cfffffffffffffffff",
    ),
    (
        wire.BlocksRead(),
        "0c00000000000000020100000000008091aa426c6f636b7352656164",
    ),
    (
        wire.BlocksWritten(size_bytes=4096),
        "1200000000000000020100000000008092ad426c6f636b735772697474656ecd1000",
    ),
    (
        wire.SeekDone(offset=8192),
        "0d00000000000000020100000000008092a85365656b446f6e65cd2000",
    ),
    (
        wire.DirectoryRead(
            entries=(
                wire.Entry(
                    name=b"a",
                    cursor=3,
                    handle=b"file",
                    attributes=ATTRIBUTES,
                    mode=wire.Mode.SHARED,
                    bare=wire.Bare.OF_ALL,
                ),
            ),
            at_end=True,
            serial=305,
            mode=wire.Mode.SHARED,
            lists_all=True,
        ),
        "4800000000000000020100000000008096ad4469726563746f7279526561649196c4016103c40466696c659ccd81a401cd03"
        "e8cd03e8000508cd1000cf17979cfe362a0001ff00cfffffffffffffffff0102c3cd013101c3",
    ),
    (
        wire.LeaseGranted(serial=306, mode=wire.Mode.EXCLUSIVE),
        "1200000000000000020100000000008093ac4c656173654772616e746564cd013202",
    ),
    (
        wire.HeldTold(session=b"key", leases=(wire.Believed(b"file", 306, wire.Mode.SHARED, True),), is_cut=False),
        "1d00000000000000020100000000008094a848656c64546f6c64c4036b65799194c40466696c65cd013201c3c2",
    ),
    (
        wire.HeldAudited((wire.Audited(b"file", 2, ATTRIBUTES, 1 << 20, 5, b"sha256"),), skipped=1, at_end=True),
        "4b00000000000000020100000000008094ab48656c64417564697465649196c40466696c65029ccd81a401cd03e8cd03e800"
        "0508cd1000cf17979cfe362a0001ff00cfffffffffffffffffce0010000005c40673686132353601c3",
    ),
    (
        wire.LeaseReturned(),
        "0f00000000000000020100000000008091ad4c6561736552657475726e6564",
    ),
    (
        wire.RangeProbed(kind=2, start=0, end=2**63 - 1, pid=0),
        "1900000000000000020100000000008095ab52616e676550726f6265640200cf7fffffffffffffff00",
    ),
]
