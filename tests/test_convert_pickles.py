"""PyTorch files read as data: what torch.save wrote comes back bit for bit, and what is hostile runs nothing."""

from __future__ import annotations

import argparse
import collections
import gc
import os
import pickle
import random
import resource
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from convert.conversion import ConversionError, UnsafeFileError
from convert.pickle_tensors import Storages
from convert.pickles import read_pickle
from convert.torch_files import Record, Reference, StoredTensor, read_torch_file
from tests import pickle_attacks, torch_file_attacks
from tests.torch_file_attacks import legacy_parts, torch_zip

NUM_MUTANTS = 2000  # of each format; a mutant takes about 0.3 ms
MAX_GROWTH = 200 << 20  # bytes of memory that all attacks together may leave at their peak; the largest has 2 MB
MAX_SECONDS = 2  # for one attack; the slowest takes 0.15 s on an idle machine
NUM_ATTACKS = 200  # the table of faults asks for as many

DTYPES = {
    torch.float64: np.float64,
    torch.float32: np.float32,
    torch.float16: np.float16,
    torch.bfloat16: ml_dtypes.bfloat16,
    torch.float8_e4m3fn: ml_dtypes.float8_e4m3fn,
    torch.float8_e5m2: ml_dtypes.float8_e5m2,
    torch.complex64: np.complex64,
    torch.complex128: np.complex128,
    torch.int64: np.int64,
    torch.int32: np.int32,
    torch.int16: np.int16,
    torch.int8: np.int8,
    torch.uint64: np.uint64,
    torch.uint32: np.uint32,
    torch.uint16: np.uint16,
    torch.uint8: np.uint8,
    torch.bool: np.bool_,
}
both_formats = pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])


def save(path: Path, value: object, *, is_zip: bool = True) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=is_zip)
    return path


def assert_same(mine: Any, theirs: Any) -> None:
    """Equal values; tensors equal in dtype, shape and every bit."""
    if isinstance(theirs, torch.Tensor):
        array = mine.read()
        assert (mine.dtype, mine.shape) == (array.dtype, array.shape) == (DTYPES[theirs.dtype], tuple(theirs.shape))
        assert array.flags.c_contiguous
        assert mine.num_bytes == array.nbytes
        assert array.tobytes() == bytes(theirs.detach().contiguous().flatten().view(torch.uint8).numpy())
    elif isinstance(theirs, dict):
        assert type(mine) is dict
        assert list(mine) == list(theirs)
        for key in theirs:
            assert_same(mine[key], theirs[key])
    elif isinstance(theirs, list | tuple):
        assert type(mine) in (list, tuple)
        assert len(mine) == len(theirs)
        for one, other in zip(mine, theirs, strict=True):
            assert_same(one, other)
    else:
        assert type(mine) is type(theirs)
        assert mine == theirs


@both_formats
def test_what_was_saved_is_read_bit_for_bit(is_zip, tmp_path):
    layers = torch.nn.Sequential(torch.nn.Conv1d(3, 4, 5), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))
    matrix = torch.randn(5, 6)
    with_attributes = torch.randn(3)
    with_attributes.language = "fra"
    value = {
        "model": layers.state_dict(),
        "parameter": torch.nn.Parameter(torch.randn(3)),
        "views": [matrix, matrix.t(), matrix[1:4, ::2], matrix[:, 0], matrix[2:2], matrix.expand(1, 5, 6)],
        "permuted": torch.randn(2, 3, 4, 5).permute(3, 1, 0, 2),
        "channels last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "scalar": torch.tensor(1.5),
        "empty": [torch.zeros(0), torch.zeros(3, 0, 2)],
        "with attributes": with_attributes,
        "numbers": [0, -1, 255, 65535, -(2**31), 2**31, 2**62, -(2**70), 1.5, float("inf"), True, False, None],
        "text": ["", "a" * 300, "ɡʷ ʈʰ 語 😀"],
        "bytes": b"\0\xff" * 200,
        "set": {1, "a"},
        "tuples": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)],
        3: {None: 1, 1.5: 2, b"b": 3},
    }
    path = save(tmp_path / "x.pt", value, is_zip=is_zip)
    assert_same(read_torch_file(path), torch.load(path, weights_only=False))


@both_formats
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_is_read_bit_for_bit(dtype, is_zip, tmp_path):
    bits = torch.from_numpy(np.random.default_rng(0).integers(0, 256, 16 * 8, np.uint8))
    tensor = (bits % 2).bool() if dtype is torch.bool else bits.view(dtype)
    value = {"a": tensor, "b": tensor.reshape(2, -1).t()}
    # not torch.load: of the older format, it does not read all dtypes that it writes
    assert_same(read_torch_file(save(tmp_path / "x.pt", value, is_zip=is_zip)), value)


@both_formats
def test_tensors_that_share_a_storage_are_tied(is_zip, tmp_path):
    tensor = torch.randn(4)
    tensors = read_torch_file(save(tmp_path / "x.pt", [tensor, tensor[1:], tensor.clone()], is_zip=is_zip))
    assert tensors[0].storage is tensors[1].storage is not tensors[2].storage
    assert tensors[1].offset == tensors[0].offset + 4


@both_formats
def test_values_of_classes_are_plain_or_names(is_zip, tmp_path):
    value = [torch.Size([2, 3]), torch.device("cuda", 1), torch.float16, collections.defaultdict(list, {"a": [1]})]
    size, device, dtype, default = read_torch_file(save(tmp_path / "x.pt", value, is_zip=is_zip))
    assert size == (2, 3)
    assert (device.name, device.arguments) == ("torch.device", ("cuda", 1))
    assert dtype == Reference("torch.float16")
    assert (type(default), default) == (dict, {"a": [1]})


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, np.int64, np.uint8, np.bool_])
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_scalars_of_numpy_are_numbers(dtype, protocol):
    value, _ = read_pickle(pickle.dumps([dtype(1), dtype(0)], protocol), where="x")
    assert value == [1, 0]
    assert {type(number) for number in value} == {type(dtype(0).item())}


@pytest.mark.parametrize("protocol", range(6))
def test_every_protocol_is_read_as_pickle_reads_it(protocol):
    shared = [1, 2]
    value = {
        "numbers": [*range(-300, 300, 7), 2**31, -(2**63), 2**120, 1e300, -0.5, True, False, None],
        "text": ["", "a\nb\\u0041", "é" * 200, "語" * 30_000, "'\""],
        "bytes": [b"", b"\0\xff'\"\n", b"x" * 300],
        "shared": [shared, shared, (shared, ())],
        "sets": [{1, 2}, frozenset("ab"), set()],
        "ordered": collections.OrderedDict(a=1, b=2),
        "many": list(range(3000)),
        "long": {str(i): i for i in range(3000)},
    }
    mine, end = read_pickle(pickle.dumps(value, protocol), where="x")
    assert mine == value
    assert end == len(pickle.dumps(value, protocol))
    assert mine["shared"][0] is mine["shared"][1]


def test_text_of_python_2_is_text_where_it_is_utf_8():
    data = b"\x80\x02](U\x02\xc3\xa9T\x01\0\0\0aU\x01\xffS'b\\n\\x41'\nI01\nI7\nL8L\nF1.5\ne."
    assert read_pickle(data, where="x")[0] == ["é", "a", b"\xff", "b\nA", True, 7, 8, 1.5]


@pytest.fixture
def dictionary_class(monkeypatch):
    """A stand-in for fairseq.data.dictionary.Dictionary, whose own module would be imported by an unpickler."""
    for name in ("fairseq", "fairseq.data", "fairseq.data.dictionary"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    kind = type("Dictionary", (), {"__module__": "fairseq.data.dictionary"})
    monkeypatch.setattr(sys.modules["fairseq.data.dictionary"], "Dictionary", kind, raising=False)
    return kind


@both_formats
def test_a_checkpoint_like_fairseq_s_is_read_without_fairseq(is_zip, dictionary_class, tmp_path, monkeypatch):
    dictionary = dictionary_class()
    dictionary.__dict__ |= {"symbols": ["<s>", "a"], "indices": {"<s>": 0, "a": 1}, "count": [1, 1], "bos_word": "<s>"}
    state = {
        "args": argparse.Namespace(lr=[0.1], arch="wav2vec_ctc"),
        "cfg": {"model": {"_name": "wav2vec_ctc", "w2v_args": None}},
        "model": torch.nn.Linear(3, 4).state_dict(),
        "criterion": None,
        "optimizer_history": [{"num_updates": 4000, "lr_scheduler_state": {"best": np.float64(0.5)}}],
        "task_state": {"target_dictionary": dictionary},
        "extra_state": {"metrics": collections.OrderedDict(train=[(10, "loss", "AverageMeter", {"val": 1.5})])},
        "adapter": {"fra": {"model": {"W_a": torch.randn(1, 2, 3)}, "task_state": {"fra": dictionary}}},
    }
    path = save(tmp_path / "x.pt", state, is_zip=is_zip)
    monkeypatch.undo()  # from here on there is no fairseq
    mine = read_torch_file(path)
    assert_same(mine["adapter"]["fra"]["model"], state["adapter"]["fra"]["model"])
    assert_same(mine["model"], dict(state["model"]))
    read = mine["task_state"]["target_dictionary"]
    assert (type(read), read.name) == (Record, "fairseq.data.dictionary.Dictionary")
    assert read.state == dictionary.__dict__
    assert mine["adapter"]["fra"]["task_state"]["fra"] is read
    assert (mine["args"].name, mine["args"].state) == ("argparse.Namespace", {"lr": [0.1], "arch": "wav2vec_ctc"})
    assert mine["optimizer_history"][0]["lr_scheduler_state"] == {"best": 0.5}


def test_an_omegaconf_tree_is_read_though_every_node_holds_its_parent(monkeypatch):
    names = {"omegaconf.dictconfig": "DictConfig", "omegaconf.nodes": "AnyNode", "omegaconf.base": "Metadata"}
    kinds = {}
    monkeypatch.setitem(sys.modules, "omegaconf", types.ModuleType("omegaconf"))
    for module, name in names.items():
        monkeypatch.setitem(sys.modules, module, types.ModuleType(module))
        kinds[name] = type(name, (), {"__module__": module})
        monkeypatch.setattr(sys.modules[module], name, kinds[name], raising=False)
    root, node, metadata = kinds["DictConfig"](), kinds["AnyNode"](), kinds["Metadata"]()
    metadata.__dict__ |= {"ref_type": Any, "element_type": dict}
    node.__dict__ |= {"_parent": root, "_val": 3}
    root.__dict__ |= {"_parent": None, "_metadata": metadata, "_content": {"a": node}}
    mine, _ = read_pickle(pickle.dumps(root, 2), where="x")
    assert mine.state["_content"]["a"].state == {"_val": 3}
    assert mine.state["_metadata"].state == {
        "ref_type": Reference("typing.Any"),
        "element_type": Reference("builtins.dict"),
    }


def attacks(canary: Path) -> dict[str, bytes]:
    """Files, by what is wrong with them."""
    pickles = {
        f"{name}, protocol {protocol}": pickle.dumps(call, protocol)
        for name, call in pickle_attacks.calls(canary).items()
        for protocol in range(6)
    }
    pickles |= pickle_attacks.globals_asked_for() | pickle_attacks.OPCODES | pickle_attacks.memory()
    pickles |= torch_file_attacks.TENSORS
    files = {f"zip: {name}": torch_zip(data) for name, data in pickles.items()}
    files |= {f"legacy: {name}": b"".join(legacy_parts(data)) for name, data in pickles.items()}
    files |= {
        f"zip whose structure is wrong: {name}": data for name, data in torch_file_attacks.zip_structure().items()
    }
    files |= {f"zip cut after {cut} bytes": torch_zip()[:cut] for cut in torch_file_attacks.zip_cuts()}
    return files | {f"legacy file: {name}": data for name, data in torch_file_attacks.legacy_structure().items()}


def test_every_attack_is_refused_and_none_runs_takes_memory_or_time(tmp_path, monkeypatch):
    canary, path = tmp_path / "fired", tmp_path / "x.pt"
    monkeypatch.delenv("MMS_JAX_CANARY", raising=False)
    files = attacks(canary)
    monkeypatch.setattr(os, "system", lambda command: pytest.fail(f"ran {command}"))
    assert len(files) >= NUM_ATTACKS
    modules, environment = set(sys.modules), dict(os.environ)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, data in files.items():
        path.write_bytes(data)
        begin = time.process_time()
        with pytest.raises(ConversionError) as caught:
            print(name, read_torch_file(path))
        assert str(caught.value).startswith(f"{path}: "), name
        assert time.process_time() - begin < MAX_SECONDS, name
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) << 10 < MAX_GROWTH
    assert list(tmp_path.iterdir()) == [path]
    assert "this" not in set(sys.modules) - modules
    assert dict(os.environ) == environment
    assert subprocess.run(["printenv", "MMS_JAX_CANARY"], check=False).returncode == 1
    assert gc.isenabled()


def test_what_the_attacks_are_made_of_is_read_without_the_attack(tmp_path):
    for data in (torch_zip(), b"".join(legacy_parts())):
        (tmp_path / "x.pt").write_bytes(data)
        np.testing.assert_array_equal(read_torch_file(tmp_path / "x.pt").read(), np.float32([1.5, -2]))


@pytest.mark.parametrize("name", ["os.system", "eval", "exec", "check_output", "Path.touch"])
def test_the_attacks_do_run_where_they_are_unpickled(name, tmp_path):
    pickle.loads(pickle.dumps(pickle_attacks.calls(tmp_path / "fired")[name]))
    assert (tmp_path / "fired").exists()


@pytest.mark.parametrize("name", ["os.system", "builtins.eval", "torch.load", "collections.OrderedDict.fromkeys"])
def test_a_global_that_is_not_listed_is_named(name, tmp_path):
    module, function = name.rsplit(".", 1)
    (tmp_path / "x.pt").write_bytes(torch_zip(f"c{module}\n{function}\n.".encode()))
    with pytest.raises(UnsafeFileError, match=rf"x\.pt: asks for '{name}'.*will not run.*state dict"):
        read_torch_file(tmp_path / "x.pt")


@pytest.mark.parametrize("name", torch_file_attacks.OTHER_FILES)
def test_a_file_that_is_something_else_is_named_for_what_it_is(name, tmp_path):
    content, expected = torch_file_attacks.OTHER_FILES[name]
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(ConversionError, match=rf"x\.pt: .*{expected}"):
        read_torch_file(tmp_path / "x.pt")


@pytest.mark.parametrize("name", ["nothing_here", "."])
def test_a_path_that_is_no_file_is_an_error_that_names_it(name, tmp_path):
    with pytest.raises(ConversionError, match="cannot be read"):
        read_torch_file(tmp_path / name)


@both_formats
def test_a_file_that_is_cut_after_it_was_opened_is_an_error_that_names_it(is_zip, tmp_path):
    path = save(tmp_path / "x.pt", torch.randn(100), is_zip=is_zip)
    tensor = read_torch_file(path)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ConversionError, match=r"x\.pt: storage .* ends early"):
        tensor.read()
    path.unlink()
    with pytest.raises(ConversionError, match=r"x\.pt: cannot be read"):
        tensor.read()


def test_a_damaged_number_is_an_error(tmp_path):
    path = save(tmp_path / "x.pt", torch.ones(100))
    content = path.read_bytes()
    path.write_bytes(content.replace(np.ones(2, np.float32).tobytes(), b"\0" * 8, 1))
    with pytest.raises(ConversionError, match=r"x\.pt: storage 0 is damaged"):
        read_torch_file(path).read()


def test_a_file_saved_without_checksums_is_read(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        path = save(tmp_path / "x.pt", {"a": torch.randn(3)})
    finally:
        torch.serialization.set_crc32_options(True)
    assert_same(read_torch_file(path), torch.load(path))


def walk(value: Any) -> None:
    """Read every tensor of a value."""
    if isinstance(value, StoredTensor):
        assert value.read().shape == value.shape
    for child in value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ():
        walk(child)


def outcome_of(read: Callable[[], object]) -> str:
    """What reading comes to: "value", or the typed error's message."""
    try:
        walk(read())
    except ConversionError as error:
        return str(error)
    return "value"


@both_formats
def test_a_file_with_random_damage_gives_values_or_the_typed_error(is_zip, tmp_path):
    value = {"model": torch.nn.Linear(2, 3).state_dict(), "n": [1, 2.5, "a", (None, {1})], "i": torch.arange(3)}
    good = save(tmp_path / "good.pt", value, is_zip=is_zip).read_bytes()
    generator, path, outcomes = random.Random(0), tmp_path / "x.pt", collections.Counter()
    for _ in range(NUM_MUTANTS):
        mutant = bytearray(good[: generator.choice([len(good), len(good), generator.randrange(1, len(good))])])
        for _ in range(generator.randint(1, 4)):
            mutant[generator.randrange(len(mutant))] = generator.choice([0, 1, 127, 128, 255, generator.randrange(256)])
        path.write_bytes(mutant)
        outcome = outcome_of(lambda: read_torch_file(path))
        assert outcome == "value" or outcome.startswith(f"{path}: ")
        outcomes[outcome == "value"] += 1
    assert min(outcomes[True], outcomes[False]) > NUM_MUTANTS // 100  # both ends are met


def test_random_opcodes_give_a_value_or_the_typed_error():
    generator, outcomes = random.Random(0), collections.Counter()
    blocks = [
        pickle_attacks.TENSOR,
        *(bytes([code]) for code in range(256)),
        *8 * [b"](K\x01e", b"q\0", b"h\0", b"K\1"],
    ]
    blocks += 8 * [b"}", b")", b"(", b"t", b"R", b"b", b"a", b"s", b"u", b"\x85", b"cargparse\nNamespace\n)\x81", b"N"]
    for _ in range(NUM_MUTANTS * 5):
        data = b"".join(generator.choices(blocks, k=generator.randint(1, 8))) + b"."
        outcome = outcome_of(lambda data=data: read_pickle(data, where="x", storages=Storages(Path("x")))[0] and None)
        assert outcome == "value" or outcome.startswith("x: ")
        outcomes[outcome == "value"] += 1
    assert min(outcomes[True], outcomes[False]) > NUM_MUTANTS // 100
