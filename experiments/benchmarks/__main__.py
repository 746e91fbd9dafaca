"""One program for all benchmarks: ``python -m experiments.benchmarks WHAT [options]``.

WHAT is asr, files, accelerator, mixed, long, tts, decoder, train, ctc, beam, align, startup or memory; its options
follow it. Each checks that results are equal before it times anything, and prints medians and ratios (> 1: it is
faster).
``table RESULTS.json…`` prints Markdown of what asr, tts, mixed and decoder wrote with --output, ``chart RESULTS.json…
--output speed.png`` draws it. Peers beside transformers need ``pip install -e '.[bench]'`` and are left out without.
"""

from __future__ import annotations

import importlib
import sys

MODULES = {
    "asr": "asr_forward",
    "files": "end_to_end",
    "accelerator": "accelerator",
    "mixed": "mixed",
    "long": "long_audio",
    "tts": "tts",
    "decoder": "vits_decoder",
    "train": "train",
    "ctc": "ctc_loss",
    "beam": "beam",
    "align": "alignment",
    "startup": "startup",
    "memory": "memory",
    "table": "report",
    "chart": "chart",
}


def main() -> None:
    """Hand over to the benchmark named."""
    what = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if what in ("-h", "--help"):
        print(__doc__)
        return
    if what not in MODULES:
        sys.exit(f"experiments.benchmarks: there is no {what!r}; there are {', '.join(MODULES)}")
    del sys.argv[1]
    sys.argv[0] = f"python -m experiments.benchmarks {what}"
    importlib.import_module(f"experiments.benchmarks.{MODULES[what]}").main()


if __name__ == "__main__":
    main()
