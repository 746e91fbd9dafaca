"""Malicious and mistaken checkpoint files: tensors outside their storage, zips that say two things, files cut short."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile

from tests.pickle_attacks import GOOD, REBUILD, as_text

NUMBERS = struct.pack("<2f", 1.5, -2)
FILES = {
    "data.pkl": GOOD,
    "byteorder": b"little",
    "data/0": NUMBERS,
    "version": b"3\n",
}


def zipped(files: dict[str, bytes], *, root: str = "x/", compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(root + name, content)
    return buffer.getvalue()


def torch_zip(data: bytes = GOOD) -> bytes:
    return zipped(FILES | {"data.pkl": data})


def legacy_parts(data: bytes = GOOD, *, keys: list[str] | None = None) -> list[bytes]:
    """A file of PyTorch before 1.6, in the pieces that it is made of."""
    head = [0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {"int": 4}}]
    storages = [struct.pack("<q", 2), NUMBERS]
    return [*(pickle.dumps(value, 2) for value in head), data, pickle.dumps(keys or ["0"], 2), *storages]


def _plain(value: object) -> bytes:
    """The opcodes that push a plain value."""
    return pickle.dumps(value, 2)[2:-1]


def _storage(kind: str = "torch FloatStorage", key: object = "0", numel: object = 2, *more: object) -> bytes:
    module, name = kind.split()
    fields = b"".join(_plain(value) for value in (key, "cpu", numel, *more))
    return b"(" + as_text("storage") + f"c{module}\n{name}\n".encode() + fields + b"tQ"


def _tensor(
    offset: object = 0, shape: object = (2,), strides: object = (1,), *more: object, storage: bytes = b""
) -> bytes:
    fields = b"".join(_plain(value) for value in (offset, shape, strides, False, {}, *more))
    return b"\x80\x02" + REBUILD + b"(" + (storage or _storage()) + fields + b"tR."


TENSORS = {
    "offset -1": _tensor(-1),
    "offset beyond": _tensor(1),
    "offset 2^62": _tensor(1 << 62),
    "offset that is a bool": _tensor(True, (1,)),
    "offset that is a float": _tensor(0.0),
    "shape -2": _tensor(0, (-2,)),
    "shape of -1 twice": _tensor(0, (-1, -2), (1, 1)),
    "shape of 2^40": _tensor(0, (1 << 40,)),
    "shape of 2^32 three times": _tensor(0, (1 << 32,) * 3, (0, 0, 0)),
    "shape of 2^100": _tensor(0, (1 << 100,)),
    "shape that is a list": _tensor(0, [2]),
    "shape of text": _tensor(0, ("2",)),
    "shape of floats": _tensor(0, (2.0,)),
    "shape of bools": _tensor(0, (True,)),
    "33 dimensions": _tensor(0, (1,) * 33, (1,) * 33),
    "strides -1": _tensor(0, (2,), (-1,)),
    "strides 2": _tensor(0, (2,), (2,)),
    "strides 2^61": _tensor(0, (2,), (1 << 61,)),
    "strides 0 and a shape of 10^9": _tensor(0, (10**9,), (0,)),
    "strides 0 and a shape of 3": _tensor(0, (3,), (0,)),
    "too few strides": _tensor(0, (2,), ()),
    "too many strides": _tensor(0, (2,), (1, 1)),
    "strides that are None": _tensor(0, (2,), None),
    "conjugate": _tensor(0, (2,), (1,), {"conj": True}),
    "too many values": _tensor(0, (2,), (1,), {}, {}),
    "too few values": b"\x80\x02" + REBUILD + b"(" + _storage() + b"tR.",
    "storage that is text": _tensor(storage=as_text("0")),
    "storage that is None": _tensor(storage=b"N"),
    "storage of an unknown type": _tensor(storage=_storage("torch QInt8Storage")),
    "storage of a type that is a dtype": _tensor(storage=_storage("torch float32")),
    "storage of -2": _tensor(storage=_storage(numel=-2)),
    "storage of 2^61": _tensor(storage=_storage(numel=1 << 61)),
    "storage of 2^100": _tensor(storage=_storage(numel=1 << 100)),
    "storage of 2.0": _tensor(storage=_storage(numel=2.0)),
    "storage longer than its member": _tensor(storage=_storage(numel=3)),
    "storage that is not there": _tensor(storage=_storage(key="1")),
    "storage elsewhere": _tensor(storage=_storage(key="../data.pkl")),
    "storage at an absolute path": _tensor(storage=_storage(key="/etc/passwd")),
    "storage whose key is a number": _tensor(storage=_storage(key=0)),
    "storage whose key is long": _tensor(storage=_storage(key="0" * 1000)),
    "storage that is a view": _tensor(storage=_storage("torch FloatStorage", "0", 2, ("1", 0, 1))),
    "storage with too few fields": _tensor(storage=b"(" + as_text("storage") + b"tQ"),
    "storage of two types": _tensor()[:-1] + b"0" + _tensor(storage=_storage("torch IntStorage"))[2:],
    "storage of two sizes": _tensor()[:-1] + b"0" + _tensor(storage=_storage(numel=1))[2:],
    "parameter of text": b"\x80\x02ctorch._utils\n_rebuild_parameter\n" + as_text("x") + b"\x89}\x87R.",
    "parameter of a call": b"\x80\x02ctorch._utils\n_rebuild_parameter\ncos\nsystem\n\x89}\x87R.",
    "attributes set by another function": b"\x80\x02ctorch._tensor\n_rebuild_from_type_v2\n("
    + b"ccollections\nOrderedDict\nctorch\nTensor\n)}tR.",
    "attributes of another class": b"\x80\x02ctorch._tensor\n_rebuild_from_type_v2\n("
    + REBUILD
    + b"cargparse\nNamespace\n)}tR.",
    "unknown dtype": b"\x80\x02ctorch._utils\n_rebuild_tensor_v3\n("
    + _storage()
    + b"K\x00)){}K\x01tR.".replace(b"{}", b"}}"),
    "tensor as a key": b"\x80\x02}" + _tensor()[2:-1] + b"Ns.",
}


def _entries(content: bytes, signature: bytes) -> list[int]:
    """Where a kind of zip record begins."""
    found, at = [], content.find(signature)
    while at >= 0:
        found.append(at)
        at = content.find(signature, at + 1)
    return found


def _patched(content: bytes, at: int, new: bytes) -> bytes:
    return content[:at] + new + content[at + len(new) :]


def _twice(name: str) -> bytes:
    """A zip with two members of one name: one is checked, the other one read."""
    other = name.replace("p", "q")
    return zipped({other: b"cos\nsystem\n.", **FILES}).replace(other.encode(), name.encode())


def zip_structure() -> dict[str, bytes]:
    """torch zips whose structure is wrong; the first member is data.pkl."""
    good = torch_zip()
    heads, entries, end = _entries(good, b"PK\3\4"), _entries(good, b"PK\1\2"), good.rindex(b"PK\5\6")
    local, entry = heads[0], entries[0]
    fields = {"flags": (6, 8, b"\1\0"), "method": (8, 10, b"\x08\0"), "checksum": (14, 16, b"abcd")}
    fields |= {"size": (22, 24, b"\1\0\0\0"), "packed size": (18, 20, b"\1\0\0\0")}
    attacks = {}
    for name, (in_local, in_entry, value) in fields.items():
        attacks[f"{name} of the member"] = _patched(good, local + in_local, value)
        attacks[f"{name} of the directory"] = _patched(good, entry + in_entry, value)
        attacks[f"{name} of both"] = _patched(attacks[f"{name} of the member"], entry + in_entry, value)
    names = (
        "../data.pkl",
        "/data.pkl",
        "x/../y",
        "x/./y",
        "x//y",
        "x\\y",
        "C:y",
        "x/a\0b",
        "x/a\nb",
        "x/\u202e",
        ".",
        "..",
    )
    attacks |= {f"another member {name!a}": _with_raw_name(name) for name in names}
    return attacks | {
        "compressed": zipped(FILES, compression=zipfile.ZIP_DEFLATED),
        "compressed bomb": zipped(FILES | {"data/0": bytes(1 << 24)}, compression=zipfile.ZIP_DEFLATED),
        "data.pkl twice": _twice("data.pkl"),
        "data/0 of another member": _patched(good, entries[2] + 42, struct.pack("<I", heads[0])),
        "members that overlap": _patched(good, entries[3] + 42, struct.pack("<I", heads[2])),
        "member beyond the end": _patched(good, entries[2] + 42, struct.pack("<I", 1 << 31)),
        "name of the member": _patched(good, local + 30, b"y/data.pkl"),
        "signature of the member": _patched(good, local, b"PK\3\5"),
        "signature of the directory": _patched(good, entry, b"PK\1\3"),
        "too many entries": _patched(good, end + 8, b"\5\0\5\0"),
        "too few entries": _patched(good, end + 8, b"\3\0\3\0"),
        "entries that differ": _patched(good, end + 8, b"\3\0"),
        "65,535 entries": _patched(good, end + 8, b"\xff" * 4),
        "another disk": _patched(good, end + 4, b"\1\0"),
        "directory elsewhere": _patched(good, end + 16, b"\1"),
        "directory of 4 GB": _patched(good, end + 12, b"\xff" * 4),
        "something in front": b"\x7fELF" + good,
        "a script in front": b"#!/bin/sh\n" + good,
        "a zip in front": torch_zip(b"cos\nsystem\n.") + good,
        "something behind": good + b"x",
        "a zip behind": good + torch_zip(),
        "a comment": _patched(good, end + 20, b"\1\0") + b"x",
        "something before the directory": good[: entries[0]] + b"PK\3\4" + good[entries[0] :],
        "no data.pkl": zipped({"byteorder": b"little", "version": b"3"}),
        "two folders": zipped(FILES | {"../y": b""}, root="x").replace(b"x../y", b"xxxxy"),
        "a second root": zipped({"x/" + name: content for name, content in FILES.items()} | {"y/a": b"1"}, root=""),
        "no folder": zipped(FILES, root=""),
        "TorchScript": zipped(FILES | {"constants.pkl": b"\x80\x02)."}),
        "TorchScript code": zipped(FILES | {"code/__torch__.py": b"import os"}),
        "big-endian": zipped(FILES | {"byteorder": b"big"}),
        "unknown byte order": zipped(FILES | {"byteorder": b"pdp"}),
        "a zip as its pickle": torch_zip(torch_zip()),
        "storage missing": zipped({name: FILES[name] for name in ("data.pkl", "version")}),
        "storage cut": zipped(FILES | {"data/0": NUMBERS[:7]}),
        "pickle damaged": good.replace(b"_rebuild_tensor_v2", b"_rebuild_tensor_v3"),
    }


def _with_raw_name(name: str) -> bytes:
    """A torch zip with one more member of that very name, which zipfile would tidy up."""
    stand_in = "x/" + "z" * (len(name.encode()) - 2) if len(name.encode()) > 2 else "zz"[: len(name.encode())]
    files = {"x/" + key: content for key, content in FILES.items()} | {stand_in: b"1"}
    return zipped(files, root="").replace(stand_in.encode(), name.encode())


def zip_cuts() -> list[int]:
    """Every structural boundary of the good torch zip: of headers, names, contents, entries, the end."""
    good = torch_zip()
    cuts = set()
    for at in _entries(good, b"PK\3\4"):
        name, size = struct.unpack_from("<H", good, at + 26)[0], struct.unpack_from("<I", good, at + 18)[0]
        cuts |= {at, at + 30, at + 30 + name, at + 30 + name + size}
    for at in _entries(good, b"PK\1\2"):
        cuts |= {at, at + 46}
    end = good.rindex(b"PK\5\6")
    return sorted({*cuts, end, end + 4, end + 12, len(good) - 1} - {len(good)})


def legacy_structure() -> dict[str, bytes]:
    """Files of the older format that are wrong, and cut at every boundary."""
    parts = legacy_parts()
    good = b"".join(parts)
    cuts = [len(b"".join(parts[:count])) for count in range(1, len(parts))]
    attacks = {f"cut after {cut} bytes": good[:cut] for cut in sorted({cut + d for cut in cuts for d in (-1, 0, 1)})}

    def changed(index: int, new: bytes) -> bytes:
        return b"".join([*parts[:index], new, *parts[index + 1 :]])

    return attacks | {
        "cut in the numbers": good[:-1],
        "something behind": good + b"x",
        "another magic number": changed(0, pickle.dumps(0x1950A86A20F9469CFC6D, 2)),
        "code for a magic number": changed(0, b"\x80\x02cos\nsystem\n" + as_text("x") + b"\x85R."),
        "another version": changed(1, pickle.dumps(1002, 2)),
        "big-endian": changed(2, pickle.dumps({"little_endian": False}, 2)),
        "system information that is code": changed(2, b"\x80\x02cos\nsystem\n" + as_text("x") + b"\x85R."),
        "system information that is a tensor": changed(2, GOOD),
        "no keys": changed(4, pickle.dumps([], 2)),
        "another key": changed(4, pickle.dumps(["1"], 2)),
        "a key twice": changed(4, pickle.dumps(["0", "0"], 2)),
        "keys that are numbers": changed(4, pickle.dumps([0], 2)),
        "keys that are lists": changed(4, pickle.dumps([["0"]], 2)),
        "keys that are code": changed(4, b"cos\nsystem\n)R."),
        "a storage of another size": changed(5, struct.pack("<q", 1)),
        "a storage of size -1": changed(5, struct.pack("<q", -1)),
        "a storage of size 2^62": changed(5, struct.pack("<q", 1 << 62)),
    }


OTHER_FILES = {  # that people give by mistake, and what the message has to say
    "empty": (b"", "an empty file"),
    "one byte": (b"P", "not a file of torch.save"),
    "safetensors": (struct.pack("<Q", 2) + b"{}", "safetensors"),
    "html": (b"\n<!DOCTYPE html><html>404</html>", "a web page"),
    "xml": (b"<?xml version='1.0'?><Error>AccessDenied</Error>", "a web page"),
    "git-lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
    "gzip": (b"\x1f\x8b\x08" + b"\0" * 20, "unpack it first"),
    "tar": (b"eng/".ljust(257, b"\0") + b"ustar\x0000" + b"\0" * 500, "a tar archive"),
    "hdf5": (b"\x89HDF\r\n\x1a\n", "HDF5"),
    "empty zip": (b"PK\5\6" + b"\0" * 18, "an empty zip"),
    "protocol 0 pickle": (b"(lp0\n.", "not a file of torch.save"),
    "plain pickle": (b"\x80\x04]\x94.", "torch.save did not write"),
    "TorchScript": (zipped(FILES | {"constants.pkl": b"\x80\x02)."}), "TorchScript"),
    "zip of something": (zipped({"config.json": b"{}"}), "unpack it first"),
}
