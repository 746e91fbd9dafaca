"""Malicious archives: members that lead elsewhere or are no files, that lie about their size, that are cut short."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
import zipfile
from collections.abc import Iterable

GOOD = {"eng/config.json": b'{"a": 1}' * 100, "eng/G_100000.pth": bytes(range(256)) * 40, "eng/empty": b""}
ELSEWHERE = (
    *("../x", "/x", "/etc/x", "eng/../../x", "eng/../x", "eng//x", "eng/./x", "..", ".", "eng/..", "./../x", ".//x"),
    *("eng\\x", "..\\x", "C:x", "C:/x", "eng/a\nb", "eng/a\tb", "eng/\u202egnp.x", "~/../x", "a/" * 600 + "x"),
)
_MEGABYTE = bytes(1 << 20)


def member(name: str, content: bytes = b"", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    """A tar member; ``fields`` replace what its header says."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, content


def tar(members: Iterable[tuple[tarfile.TarInfo, bytes]], *, form: int = tarfile.GNU_FORMAT, end: bytes = b"") -> bytes:
    """A tar archive of headers and contents that need not fit, with its end mark unless ``end`` replaces it."""
    parts = []
    for info, content in members:
        parts += [info.tobuf(form), content, b"\0" * (-len(content) % 512)]
    return b"".join(parts) + (end or b"\0" * 1024)


def good_tar() -> bytes:
    return tar(member(name, content) for name, content in GOOD.items())


def zip_of(files: dict[str, bytes], *, mode: int = 0o100644, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in files.items():
            info = zipfile.ZipInfo(name)
            info.create_system, info.external_attr, info.compress_type = 3, mode << 16, method
            archive.writestr(info, content)
    return buffer.getvalue()


def _extension(kind: bytes, content: bytes) -> tuple[tarfile.TarInfo, bytes]:
    return member("././@LongLink", content, type=kind)


def _pax(**records: str) -> tuple[tarfile.TarInfo, bytes]:
    """A header of the POSIX kind, which replaces fields of the next one."""
    content = b""
    for key, value in records.items():
        record = f" {key}={value}\n".encode()
        length = next(n for n in range(1, 10_000) if len(str(n)) + len(record) == n)
        content += str(length).encode() + record
    return _extension(tarfile.XHDTYPE, content)


_LINKS = {
    "symbolic link outside": ("eng/x", tarfile.SYMTYPE, "/etc/passwd"),
    "symbolic link upwards": ("eng/x", tarfile.SYMTYPE, "../../x"),
    "symbolic link inside": ("eng/x", tarfile.SYMTYPE, "config.json"),
    "hard link outside": ("eng/x", tarfile.LNKTYPE, "/etc/passwd"),
    "hard link upwards": ("eng/x", tarfile.LNKTYPE, "../x"),
    "hard link inside": ("eng/x", tarfile.LNKTYPE, "eng/config.json"),
    "character device": ("eng/x", tarfile.CHRTYPE, ""),
    "block device": ("eng/x", tarfile.BLKTYPE, ""),
    "pipe": ("eng/x", tarfile.FIFOTYPE, ""),
    "contiguous file": ("eng/x", tarfile.CONTTYPE, ""),
    "sparse file": ("eng/x", tarfile.GNUTYPE_SPARSE, ""),
    "directory link": ("eng", tarfile.SYMTYPE, "/tmp"),
    "unknown type": ("eng/x", b"Z", ""),
}


def tars() -> dict[str, bytes]:
    """Tar archives that must be refused, most behind a member that is good."""
    first = member("a/good", b"good")
    attacks = {
        name: [first, member(target, type=kind, linkname=link), member("eng/y", b"1")]
        for name, (target, kind, link) in _LINKS.items()
    }
    attacks |= {f"member {name[:40]!a}": [first, member(name, b"1")] for name in ELSEWHERE if len(name) < 100}
    attacks |= {f"folder {name[:40]!a}": [first, member(name, type=tarfile.DIRTYPE)] for name in ("../x", "/x", "..")}
    attacks |= {
        "name twice": [first, first],
        "name twice in two spellings": [first, member("./a/good", b"2")],
        "file that is a folder too": [member("a", b"1"), member("a/b", b"2")],
        "folder that is a file too": [member("a/b", b"1"), member("a", b"2")],
        "folder with bytes": [first, member("eng", b"1" * 512, type=tarfile.DIRTYPE)],
        "4 EB declared": [first, member("eng/x", b"1", size=1 << 62)],
        "33 GB declared": [first, member("eng/x", b"1", size=33 << 30)],
        "size of -1": [first, member("eng/x", b"1", size=-1)],
        "size of -512": [first, member("eng/x", b"1", size=-512)],
        "more declared than there is": [first, member("eng/x", b"1", size=5000)],
        "pax path elsewhere": [first, _pax(path="../x"), member("eng/x", b"1")],
        "pax absolute path": [first, _pax(path="/tmp/x"), member("eng/x", b"1")],
        "pax path with a NUL": [first, _pax(path="eng/x\0y"), member("eng/x", b"1")],
        "pax size of 4 EB": [first, _pax(size=str(1 << 62)), member("eng/x", b"1")],
        "pax size of -1000000": [first, _pax(size="-1000000"), member("eng/x", b"1")],
        "pax sparse": [first, _pax(**{"GNU.sparse.map": "0,1", "GNU.sparse.size": "99"}), member("eng/x", b"1")],
        "pax link": [first, _pax(linkpath="/etc/passwd"), member("eng/x", type=tarfile.SYMTYPE, linkname="y")],
        "pax header of 1 MB": [first, _extension(tarfile.XHDTYPE, b"1" * (1 << 20)), member("eng/x", b"1")],
        "pax header of digits": [_extension(tarfile.XHDTYPE, b"1" * 1024)] * 200 + [member("eng/x", size=1 << 62)],
        "global header elsewhere": [_extension(tarfile.XGLTYPE, b"14 path=../x\n"), member("../x", b"1")],
        "long name elsewhere": [first, _extension(tarfile.GNUTYPE_LONGNAME, b"../x\0"), member("eng/x", b"1")],
        "long name of 1 MB": [first, _extension(tarfile.GNUTYPE_LONGNAME, b"x" * (1 << 20)), member("eng/x", b"1")],
        "long name of 64 EB": [first, (member("x", type=tarfile.GNUTYPE_LONGNAME, size=1 << 62)[0], b"")],
        "2,000 long names in a row": [_extension(tarfile.GNUTYPE_LONGNAME, b"x\0")] * 2000 + [first],
        "2,000 pax headers in a row": [_pax(path="x")] * 2000 + [first],
        "5,000 members": [member(f"eng/{i}") for i in range(5000)],
    }
    files = {name: tar(members) for name, members in attacks.items()}
    good = good_tar()
    second = len(tar([member("eng/config.json", GOOD["eng/config.json"])], end=b"\0" * 1)) - 1
    damaged = bytearray(good)
    damaged[second] ^= 1
    files |= {
        "second header damaged": bytes(damaged),
        "no end mark": good.removesuffix(b"\0" * 1024),
        "something behind the end": good + good,
        "a script behind the end": good + b"#!/bin/sh\n",
        "nothing but an end": tar([])[:512],
    }
    boundaries = sorted({second, second + 512, 512, 1, 511, 513, len(good) - 1024 - 512, len(good) - 1025, second - 1})
    return files | {f"cut after {cut} bytes": good[:cut] for cut in boundaries}


def gzips() -> dict[str, bytes]:
    """Attacks that only the compression makes possible."""
    good = gzip.compress(good_tar(), mtime=0)
    bomb = io.BytesIO()
    with gzip.GzipFile(fileobj=bomb, mode="wb", mtime=0) as file:
        file.write(tar([member("eng/x", b"0123456789")]))
        for _ in range(80):
            file.write(_MEGABYTE)
    zeros = gzip.compress(tar([member("eng/x", bytes(32 << 20))]), mtime=0)
    return {
        "80 MB behind the end": bomb.getvalue(),
        "32 MB of zeros": zeros,
        "wrong checksum": good[:-8] + b"abcd" + good[-4:],
        "wrong length": good[:-4] + b"abcd",
        "something behind": good + b"something",
        "no tar inside": gzip.compress(b"x" * 2000),
        "a gzip inside": gzip.compress(good),
        "damaged stream": good[:60] + b"\xff" * 20 + good[80:],
        **{f"cut after {cut} bytes": good[:cut] for cut in (2, 10, 50, len(good) // 2, len(good) - 8, len(good) - 1)},
    }


def _patched(content: bytes, at: int, new: bytes) -> bytes:
    return content[:at] + new + content[at + len(new) :]


def _declared(content: bytes, size: int) -> bytes:
    """A zip of one member that says it unpacks to ``size`` bytes."""
    content = _patched(content, 22, struct.pack("<I", size))
    return _patched(content, content.rindex(b"PK\1\2") + 24, struct.pack("<I", size))


def zips() -> dict[str, bytes]:
    """Zip archives that must be refused."""
    good = zip_of(GOOD)
    one = zip_of({"eng/x": b"0123456789" * 100})
    entry, end = one.rindex(b"PK\1\2"), one.rindex(b"PK\5\6")
    kinds = {
        "symbolic link": 0o120777,
        "device": 0o020666,
        "block device": 0o060666,
        "pipe": 0o010666,
        "socket": 0o140666,
    }
    attacks = {name: zip_of({"eng/x": b"/etc/passwd"}, mode=mode) for name, mode in kinds.items()}
    for name in (*ELSEWHERE, "eng/a\0b", "../x/", "/x/"):
        stand_in = "q" * len(name.encode())
        attacks[f"member {name[:40]!a}"] = zip_of({"a/good": b"1", stand_in: b"1"}).replace(
            stand_in.encode(), name.encode()
        )
    twice = zip_of({"eng/x": b"1", "eng/y": b"2"}).replace(b"eng/y", b"eng/x")
    flags = {"encrypted": 1, "strongly encrypted": 0x41, "with a masked directory": 0x2000}
    attacks |= {
        name: _patched(_patched(one, 6, struct.pack("<H", flag)), entry + 8, struct.pack("<H", flag))
        for name, flag in flags.items()
    }
    return attacks | {
        "name twice": twice,
        "file that is a folder too": zip_of({"a": b"1", "a/b": b"2"}),
        "folder with bytes": zip_of({"eng/": b"1"}),
        "16 MB of zeros": zip_of({"eng/x": bytes(1 << 24)}),
        "declares less than it holds": _declared(zip_of({"eng/x": b"01" * 10_000_000}), 100_000),
        "declares more than it holds": _declared(one, 1001),
        "declares 33 GB": _declared(one, 0xFFFFFFFE),
        "bzip2": zip_of({"eng/x": b"1" * 100}, method=zipfile.ZIP_BZIP2),
        "lzma": zip_of({"eng/x": b"1" * 100}, method=zipfile.ZIP_LZMA),
        "wrong checksum": _patched(_patched(one, 14, b"abcd"), entry + 16, b"abcd"),
        "damaged stream": _patched(one, 36, b"\xff" * 4),
        "another directory offset": _patched(one, end + 16, b"\0"),
        "something in front": b"#!/bin/sh\n" + good,
        "something behind": good + b"x",
        "5,000 members": zip_of({f"eng/{i}": b"" for i in range(5000)}),
        **{f"cut after {cut} bytes": good[:cut] for cut in (4, 30, 45, entry, len(good) - 22, len(good) - 1)},
    }
