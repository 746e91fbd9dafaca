"""Sources, options and places as users have them: what cannot be right is refused by name, and nothing is left."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file

import mms_jax
from tests.checkpoints import many_languages, one_vocabulary
from tests.converting import close, failure, reference, run
from tests.fairseq_originals import checkpoint, fairseq_dictionary, save, settings
from tests.parity import MMS_CONVS, random_model, randomize, small_config
from tests.sounds import noise

SMALL = {**MMS_CONVS, "conv_dim": (12,) * 7}
HEAD = {"_name": "wav2vec_ctc"}
LETTERS = ["<s>", "<pad>", "</s>", "<unk>", "|", *"abcdef"]


@pytest.fixture(scope="module")
def mms(tmp_path_factory):
    """A directory of the Hugging Face layout."""
    return many_languages(tmp_path_factory.mktemp("mms") / "mms")


@pytest.fixture
def small(tmp_path):
    """A recogniser of fairseq's without adapters, and what its file holds."""
    model = random_model(small_config(**SMALL, vocab_size=len(LETTERS), adapter_attn_dim=None))
    with fairseq_dictionary() as dictionary:
        state = {"target_dictionary": dictionary(LETTERS)}
        value = checkpoint(model, settings(model.config, head=HEAD), task_state=state)
        save(tmp_path / "small.pt", value)
    return tmp_path / "small.pt", value, model


def saved(path: Path, value) -> Path:
    with fairseq_dictionary() as dictionary:
        return save(path, {**value, "task_state": {"target_dictionary": dictionary(LETTERS)}})


# -------------------------------------------------------------------------------------------------- what fairseq reads


def test_what_goes_back_to_fairseq_has_what_its_loader_asks_for(mms, tmp_path):
    """Wav2VecEncoder takes the adapters' settings from cfg.model; without a history a file counts as one of 2017."""
    assert run(mms, tmp_path / "out", "--to", "fairseq") == 0
    with fairseq_dictionary():
        held = torch.load(tmp_path / "out" / "checkpoint.pt", weights_only=False)
    model = held["cfg"]["model"]
    assert (model["layer_type"], model["adp_num"], model["adp_dim"], model["adp_act_fn"]) == ("trf_adp", 1, 5, "relu")
    assert held["optimizer_history"][-1].keys() >= {"optimizer_name", "lr_scheduler_state", "num_updates"}
    assert "train_iterator" in held["extra_state"]
    symbols = held["task_state"]["target_dictionary"].symbols
    assert len(symbols) == len(held["model"]["w2v_encoder.proj.weight"])


def test_adapters_settings_of_the_model_with_a_head_count(small, tmp_path, capsys):
    path, value, _ = small
    value["cfg"]["model"] |= {"layer_type": "trf_adp", "adp_act_fn": "gelu"}
    saved(path, value)
    assert "adp_act_fn is 'gelu'" in failure(capsys, path, tmp_path / "out")


@pytest.mark.parametrize("normalize", [False, True])
def test_normalisation_survives_there_and_back(tmp_path, normalize):
    one_vocabulary(tmp_path / "own")
    extractor = transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True, do_normalize=normalize)
    (tmp_path / "own" / "processor_config.json").unlink(missing_ok=True)
    extractor.save_pretrained(tmp_path / "own")
    assert run(tmp_path / "own", tmp_path / "there", "--to", "fairseq") == 0
    assert run(tmp_path / "there" / "checkpoint.pt", tmp_path / "back") == 0
    assert mms_jax.load_asr(tmp_path / "back").feature_extractor.do_normalize is normalize


@pytest.mark.parametrize(("name", "value"), [("feat_extract_activation", "relu"), ("layer_norm_eps", 1e-2)])
def test_what_fairseq_has_no_word_for_is_refused(tmp_path, capsys, name, value):
    one_vocabulary(tmp_path / "own", **{name: value})
    assert f"{name} is {value!r}; in fairseq it is always" in failure(
        capsys, tmp_path / "own", tmp_path / "o", "--to", "fairseq"
    )


def test_a_pretrained_encoder_survives_there_and_back(tmp_path):
    config = small_config(**SMALL, codevector_dim=16, proj_codevector_dim=10, num_codevectors_per_group=6).to_dict()
    config |= {"adapter_attn_dim": None, "num_codevector_groups": 4, "num_negatives": 7}
    model = transformers.Wav2Vec2ForPreTraining(transformers.Wav2Vec2Config(**config))
    randomize(model, seed=3)
    model.save_pretrained(tmp_path / "own")
    transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(tmp_path / "own")
    assert run(tmp_path / "own", tmp_path / "there", "--to", "fairseq") == 0
    assert run(tmp_path / "there" / "checkpoint.pt", tmp_path / "back") == 0
    again = transformers.Wav2Vec2ForPreTraining.from_pretrained(tmp_path / "back")
    for name in ("num_codevector_groups", "num_codevectors_per_group", "codevector_dim", "num_negatives"):
        assert getattr(again.config, name) == getattr(model.config, name), name
    for name, tensor in again.state_dict().items():
        torch.testing.assert_close(tensor, model.state_dict()[name], rtol=0, atol=0)


def test_an_encoder_alone_survives_there_and_back(tmp_path):
    model = transformers.Wav2Vec2Model(small_config(**SMALL, adapter_attn_dim=None))
    randomize(model, seed=4)
    model.save_pretrained(tmp_path / "own")
    transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(tmp_path / "own")
    assert run(tmp_path / "own", tmp_path / "there", "--to", "fairseq") == 0
    assert run(tmp_path / "there" / "checkpoint.pt", tmp_path / "back") == 0
    own, back = (mms_jax.load_encoder(tmp_path / name).features(noise(6_000)).hidden for name in ("own", "back"))
    np.testing.assert_array_equal(own, back)


# ------------------------------------------------------------------------------------------------ settings and options


def test_a_config_in_place_of_settings_leaves_the_task_alone(small, tmp_path, capsys):
    path, value, model = small
    model.config.save_pretrained(tmp_path)
    value["cfg"]["task"]["normalize"] = False
    saved(path, value)
    assert run(path, tmp_path / "out", "--config", tmp_path / "config.json") == 0
    assert not mms_jax.load_asr(tmp_path / "out").feature_extractor.do_normalize
    saved(path, {**value, "cfg": None})
    assert run(path, tmp_path / "none", "--config", tmp_path / "config.json") == 0
    config = json.loads((tmp_path / "config.json").read_text()) | {"num_attention_heads": 4}
    (tmp_path / "config.json").write_text(json.dumps(config))
    saved(path, value)
    assert "num_attention_heads contradicts" in failure(
        capsys, path, tmp_path / "bad", "--config", tmp_path / "config.json"
    )


@pytest.mark.parametrize("missing", ["encoder_attention_heads", "layer_norm_first"])
def test_nothing_that_shapes_do_not_tell_is_assumed(small, tmp_path, capsys, missing):
    path, value, _ = small
    del value["cfg"]["model"]["w2v_args"]["model"][missing]
    saved(path, value)
    assert f"do not say {missing}" in failure(capsys, path, tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--language", "eng"], "--language means nothing for this; adapters are chosen with --languages"),
        (["--languages", "eng"], "holds no adapters"),
    ],
)
def test_options_that_would_be_ignored_are_refused(small, tmp_path, capsys, options, message):
    assert message in failure(capsys, small[0], tmp_path / "out", *options)


@pytest.mark.parametrize(
    "options", [["--languages", "eng"], ["--dictionary", "x"], ["--config", "x"], ["--language", "e"]]
)
def test_the_way_back_takes_no_options(mms, tmp_path, capsys, options):
    assert "means nothing for this" in failure(capsys, mms, tmp_path / "out", "--to", "bin", *options)


def test_tensors_nobody_knows_are_in_the_report(small, tmp_path):
    path, value, _ = small
    saved(path, {**value, "extra_model": {"weight": torch.ones(2)}, "scaler": [torch.ones(1)], "note": "text"})
    assert run(path, tmp_path / "out") == 0
    unused = json.loads((tmp_path / "out" / "report.json").read_text())["unused"]
    assert unused.keys() == {"last_optimizer_state", "extra_model", "scaler"}


# ------------------------------------------------------------------------------------------------------------- pickles


def old_name(name: str) -> str:
    """A tensor's name as torch spelled it before 2.0."""
    new = "parametrizations.weight.original"
    return name.replace(f"{new}0", "weight_g").replace(f"{new}1", "weight_v")


def test_directories_that_are_half_safetensors(mms, tmp_path):
    assert run(mms, tmp_path / "bin", "--to", "bin") == 0
    half = Path(shutil.copytree(mms, tmp_path / "half"))
    for path in half.glob("adapter.*"):
        shutil.copy(tmp_path / "bin" / path.with_suffix(".bin").name, half)
        path.unlink()
    (half / "README.md").write_bytes(b"caf\xe9")  # Latin-1
    (half / "training_args.bin").write_bytes(b"whatever")
    assert run(half, tmp_path / "whole") == 0
    assert (tmp_path / "whole" / "README.md").read_bytes() == b"caf\xe9"
    for path in mms.glob("*.safetensors"):
        one, other = (
            {old_name(name): tensor for name, tensor in load_file(folder / path.name).items()}
            for folder in (mms, tmp_path / "whole")
        )
        assert one.keys() == other.keys()
        for name, tensor in other.items():
            np.testing.assert_array_equal(tensor, one[name])


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
    ],
)
def test_state_dicts_of_trainers(tmp_path, wrap):
    one_vocabulary(tmp_path / "own")
    model = transformers.Wav2Vec2ForCTC.from_pretrained(tmp_path / "own")
    (tmp_path / "own" / "model.safetensors").unlink()
    torch.save(wrap(model.state_dict()), tmp_path / "own" / "pytorch_model.bin")
    assert run(tmp_path / "own", tmp_path / "out") == 0
    close(mms_jax.load_asr(tmp_path / "out").logits(noise(6_000)), reference(model.eval(), noise(6_000)))


# ------------------------------------------------------------------------------------------------------------ archives


def packed(path: Path, files: dict[str, bytes], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize("name", ["voice.tar.gz", "voice", "voice.gz", "voice.tgz"])
def test_a_checkpoint_in_an_archive_of_any_name_with_litter_beside_it(small, tmp_path, name):
    data = small[0].read_bytes()
    files = {"some/small.pt": data, "some/._small.pt": b"mac", "__MACOSX/x.pt": b"mac", "README.txt": b"hello"}
    assert run(packed(tmp_path / name, files), tmp_path / "out") == 0
    assert mms_jax.load_asr(tmp_path / "out").config.vocab_size == len(LETTERS)


def test_errors_in_archives_name_the_archive(small, tmp_path, capsys):
    archive = packed(tmp_path / "a.tar.gz", {"some/small.pt": small[0].read_bytes()[:-500]})
    error = failure(capsys, archive, tmp_path / "out")
    assert f"{archive}: some/small.pt" in error
    assert "mms_jax-convert-" not in error
    archive = packed(tmp_path / "b.tar.gz", {"a/1.pt": b"1", "b/2.pt": b"2"})
    assert "holds several checkpoints; unpack it and name one (a/1.pt, b/2.pt)" in failure(
        capsys, archive, tmp_path / "out"
    )
    archive = packed(tmp_path / "c.tar.gz", {"notes.txt": b"1"})
    assert "holds no checkpoint (notes.txt)" in failure(capsys, archive, tmp_path / "out")


@pytest.mark.parametrize("data", [b"\x1f\x8b\x08\x00", b"PK\x03\x04", b"PK\x03\x04" + bytes(600)])
def test_damaged_archives(tmp_path, capsys, data):
    (tmp_path / "a.zip").write_bytes(data)
    assert str(tmp_path / "a.zip") in failure(capsys, tmp_path / "a.zip", tmp_path / "out")


def test_a_zip_is_told_from_a_pytorch_file_by_what_it_holds(small, tmp_path):
    with zipfile.ZipFile(tmp_path / "some.zip", "w") as archive:
        archive.write(small[0], "deep/down/small.pt")
        archive.writestr("deep/other/data.pkl.txt", "no")
    assert run(tmp_path / "some.zip", tmp_path / "out") == 0


# ------------------------------------------------------------------------------------------------------- where it goes


def test_an_empty_folder_is_filled_also_behind_a_link_and_as_the_current_one(small, tmp_path, monkeypatch):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert run(small[0], tmp_path / "link") == 0
    assert (tmp_path / "real" / "report.json").exists()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert run(small[0], ".") == 0
    assert os.path.samefile(".", tmp_path / "here")
    assert Path("report.json").exists()


def test_a_full_disk_is_named_and_nothing_is_left(small, tmp_path):
    program = f"{sys.executable} -m convert {small[0]} {tmp_path / 'out'}"
    limited = [
        "bash",
        "-c",
        f"ulimit -f 20; exec {program}",
    ]  # kB a file; not by a fork of this process, which has threads
    found = subprocess.run(limited, capture_output=True, text=True, check=False)
    assert found.returncode == 1
    assert f"{tmp_path / 'out'}: cannot be written (File too large); nothing is left of it" in found.stderr
    assert "Traceback" not in found.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_conversion_leaves_nothing(small, tmp_path, number):
    """Stopped while it writes: the program is held there until the signal comes."""
    heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"  # in the background it is ignored
    hold = f"{heed}; import convert.writing as w, time; w._write_report = lambda *_: time.sleep(60)"
    arguments = ["convert", str(small[0]), str(tmp_path / "out")]
    code = f"{hold}; import sys; from convert.__main__ import main; sys.argv = {arguments}; sys.exit(main())"
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) as process:
        try:
            deadline = time.monotonic() + 60
            while not list(tmp_path.glob("out/.partial-*/config.json")) and time.monotonic() < deadline:
                time.sleep(0.05)
            time.sleep(0.5)
            process.send_signal(number)
            _, error = process.communicate(timeout=60)
        finally:
            process.kill()  # in vain, if all is well
    assert process.returncode == 130
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()


# ----------------------------------------------------------------------------------------------- a newcomer's mistakes


def test_weights_without_a_config_are_no_checkpoint(tmp_path, capsys):
    torch.save({"lm_head.weight": torch.ones(2, 3)}, tmp_path / "state.pt")
    assert "without config.json beside them" in failure(capsys, tmp_path / "state.pt", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_with_one_checkpoint_is_that_checkpoint(mms, tmp_path):
    assert run(mms, tmp_path / "there", "--to", "fairseq") == 0
    assert run(tmp_path / "there", tmp_path / "back", "--languages", "eng,fra") == 0
    assert sorted(path.name for path in (tmp_path / "back").glob("adapter.*")) == [
        "adapter.eng.safetensors",
        "adapter.fra.safetensors",
    ]


def test_the_wrong_way_back_names_the_right_one(mms, tmp_path, capsys):
    assert "of which --to fairseq or --to bin makes something" in failure(capsys, mms, tmp_path / "o", "--to", "vits")


def test_a_place_that_is_taken_is_told_before_anything_is_read(small, tmp_path, capsys):
    (tmp_path / "out").write_text("mine")
    error = failure(capsys, tmp_path / "not-there.pt", tmp_path / "out")
    assert "is a file; name a new directory" in error
    assert (tmp_path / "out").read_text() == "mine"
