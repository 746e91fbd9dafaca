"""``python -m mms_jax.pipelines.doctor``, which needs no other command's packages."""

import argparse
import sys

from mms_jax.pipelines.doctor.report import run_doctor

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m mms_jax.pipelines.doctor", description=__doc__)
    parser.add_argument("--format", choices=("text", "json"), default="text")
    sys.exit(run_doctor(parser.parse_args().format))
