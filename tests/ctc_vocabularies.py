"""Random CTC vocabularies, written as files and read by us and by the live ``Wav2Vec2CTCTokenizer``."""

import json
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from transformers import Wav2Vec2CTCTokenizer

from mms_jax.text.ctc import CTCTokenizer

ENGLISH = dict(zip(["<pad>", "<s>", "</s>", "<unk>", "|", *"ETAONIHSRDLUMWCFGYPBVK'XJQZ"], range(32), strict=True))
SPECIALS = {"<pad>": 0, "<unk>": 1}
NESTED = {
    "eng": {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "|": 4, "a": 5, "b": 6, "sch": 7, "c": 8},
    "aaq-script_latin": {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "|": 4, "ʈʰ": 5, "æ̃": 6, "é": 7, "æ": 8, "s": 9},
    "zho": {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "|": 4, "中": 5, "文": 6},
}
LETTERS = [*"abcdABCD|'ßéǆ中æ˧ʰ", "ab", "bc", "abcd", "cda", "ʈʰ", "æ̃", "kʰ", " a", "b ", "İ"]
EXAMPLES = settings(max_examples=120)


@st.composite
def vocabularies(draw):
    """A vocabulary in random order (the blank anywhere) and the settings of its tokenizer."""
    specials = [draw(st.sampled_from(names)) for names in (("<pad>", "[PAD]"), ("<unk>", "[UNK]", "?"))]
    letters = draw(st.lists(st.sampled_from(LETTERS), min_size=1, unique=True))
    others = draw(st.lists(st.sampled_from(["<s>", "</s>"]), unique=True))
    tokens = draw(st.permutations([*specials, *letters, *others]))
    config = {
        "pad_token": specials[0],
        "unk_token": specials[1],
        "do_lower_case": draw(st.booleans()),
        "clean_up_tokenization_spaces": draw(st.booleans()),
    }
    return {token: id_ for id_, token in enumerate(tokens)}, config


PIECES = st.sampled_from(
    [*LETTERS, " ", "  ", "\t", "X", "z", "<s>", "<pad>", "[PAD]", "<unk>", ".", " n't", " ' ", "|"]
)
TEXTS = st.lists(PIECES | st.characters(), max_size=20).map("".join)


def write(folder: Path, vocab, *, config=None, **files) -> Path:
    """Write vocab.json and tokenizer_config.json, and whatever other JSON files are given by name."""
    folder.mkdir(exist_ok=True)
    files |= {"vocab": vocab} | ({} if config is None else {"tokenizer_config": config})
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def build_both(folder, vocab, config, **files):
    """Return our vocabulary and the live tokenizer, read from the same files."""
    for stale in folder.glob("*.json"):
        stale.unlink()
    config = {"tokenizer_class": "Wav2Vec2CTCTokenizer", **config}
    write(folder, vocab, config=config, **files)
    return CTCTokenizer.from_directory(folder).vocabulary(), Wav2Vec2CTCTokenizer.from_pretrained(folder)
