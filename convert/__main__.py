"""``python -m convert SOURCE OUT``: what SOURCE is, it finds out; what became of every tensor, OUT/report.json says."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from convert.conversion import Conversion
from convert.detect import TARGETS, convert, opened
from convert.fairseq import Options
from convert.writing import REPORT, check_free, write
from mms_jax.checkpoint.checks import check_checkpoint
from mms_jax.checkpoint.hub import Directory
from mms_jax.errors import MMSError

_EXAMPLES = """SOURCE is one of
  a .pt of fairseq's wav2vec2 or MMS: recognition, identification, pretrained encoders
  a folder of an original VITS or MMS-TTS voice (G_*.pth, config.json, vocab.txt), also as .tar.gz
  a .pt of omnilingual ASR's CTC models, with --dictionary omniASR_tokenizer.model
  a .pt of torchaudio's wav2vec2, such as MMS's romanised aligner, with its dictionary.txt beside it
  a folder with pytorch_model.bin or adapter.*.bin, or one such file
and with --to a folder in the Hugging Face layout. Nothing in a source is ever run or unpickled.

examples:
  python -m convert mms1b_all.pt mms-1b-all --languages eng fra deu
  python -m convert mms1b_l126.pt mms-lid-126 --dictionary dict.lang.txt
  python -m convert ctc_alignment_mling_uroman_model.pt mms-aligner
  python -m convert eng.tar.gz mms-tts-eng --language eng
  python -m convert old-model new-model
  python -m convert my-model my-model-fairseq --to fairseq
"""


_INTERRUPTED = 130  # the exit code of programs that were


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m convert",
        description=__doc__,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", type=Path, metavar="SOURCE", help="file or folder")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to make; it must be new or empty")
    parser.add_argument("--to", choices=TARGETS, default="huggingface", help="layout of OUT (%(default)s)")
    parser.add_argument("--language", metavar="TAG", help="of a voice")
    parser.add_argument("--languages", nargs="+", default=[], metavar="TAG", help="whose adapters are wanted (all)")
    parser.add_argument("--base-language", metavar="TAG", help="whose adapter model.safetensors holds (eng)")
    parser.add_argument(
        "--dictionary", type=Path, metavar="FILE", help="dict.ltr.txt, dict.lang.txt, dictionary.txt or tokenizer.model"
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="a config.json, where SOURCE has no settings")
    parser.add_argument("--drop-activation", action="store_true", help="convert an identifier without its activation")
    options = parser.parse_args(arguments)
    wav2vec2 = Options(
        [tag for tags in options.languages for tag in tags.split(",") if tag],
        options.base_language,
        options.dictionary,
        options.config,
        options.drop_activation,
    )
    if arguments is None:
        for number in (signal.SIGTERM, signal.SIGHUP):  # so that what was begun is removed
            signal.signal(number, lambda *_: sys.exit(_INTERRUPTED))
    try:
        check_free(options.out)  # before gigabytes are read
        with opened(options.source) as source:
            conversion = convert(source, to=options.to, language=options.language, options=wav2vec2)
            _tell(conversion)
            check = _check if options.to == "huggingface" and "config.json" in conversion.texts else _no_check
            report = write(conversion, options.out, source=str(options.source), check=check)
    except (MMSError, OSError) as error:
        print(f"convert: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return _INTERRUPTED
    print(f"{options.out}: {len(report['tensors'])} tensors; {options.out / REPORT} accounts for each", file=sys.stderr)
    return 0


def _tell(conversion: Conversion) -> None:
    lines = [f"found: {conversion.kind}", *conversion.notes]
    for why in dict.fromkeys(conversion.unused.values()):
        names = [name for name, reason in conversion.unused.items() if reason == why]
        lines.append(f"left out: {names[0]}{f' and {len(names) - 1} more' if names[1:] else ''} ({why})")
    print("\n".join(lines), file=sys.stderr)


def _check(directory: Path) -> None:
    check_checkpoint(Directory(directory))


def _no_check(directory: Path) -> None:
    """Other layouts are not loaded here, and a single adapter has no config.json beside it."""


if __name__ == "__main__":
    sys.exit(main())
