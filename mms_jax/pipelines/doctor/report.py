"""All checks in order, each apart from the others, and what they found as text or JSON."""

from __future__ import annotations

import json
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

from mms_jax.errors import MMSError
from mms_jax.pipelines.doctor.caches import ELSEWHERE, check_compilation_cache, check_hub_cache
from mms_jax.pipelines.doctor.devices import check_devices, check_unused_gpu, with_device
from mms_jax.pipelines.doctor.findings import Finding, Status, discreet, problem
from mms_jax.pipelines.doctor.machine import check_environment, check_memory, check_processor, check_system
from mms_jax.pipelines.doctor.packages import (
    NAME,
    check_jaxlib,
    check_requirements,
    check_uroman,
    check_versions,
    reinstall,
    version,
)
from mms_jax.pipelines.doctor.selftest import check_accelerator, check_demo, check_products
from mms_jax.pipelines.doctor.sound import CODECS, REINSTALL, check_libsndfile, codec_check

MARKS = {Status.OK: "\N{CHECK MARK}", Status.WARNING: "!", Status.PROBLEM: "\N{BALLOT X}"}  # on a terminal
WORDS = {status: f"[{status}]" for status in Status}  # elsewhere

WIDTH = 110  # characters of a line
WHOLE_WORDS: Any = {"break_long_words": False, "break_on_hyphens": False}  # of paths and versions


class Check(NamedTuple):
    """A check, and what helps where it cannot even be made."""

    section: str
    name: str
    run: Callable[[], Iterable[Finding]]
    remedy: str
    aside: bool = False  # whether it runs beside the others, from the start: it is another process, which takes seconds


_REPORT = "report it with the output of mms-jax doctor --format json"
_MMS_JAX = reinstall("mms-jax")
CHECKS = (
    Check("System", "system", check_system, _REPORT),
    Check("System", "processor", check_processor, _REPORT),
    Check("System", "memory", check_memory, _REPORT),
    Check("Packages", "versions", check_versions, _MMS_JAX),
    Check("Packages", "requirements", check_requirements, "pip install --upgrade packaging mms-jax"),
    Check("Packages", "jaxlib", check_jaxlib, "pip install --upgrade packaging jax"),
    Check("Packages", "uroman", check_uroman, reinstall("'uroman>=1.3.1'"), aside=True),
    Check("Devices", "devices", check_devices, "nvidia-smi  # whether the driver answers"),
    Check("Devices", "unused GPU", check_unused_gpu, "nvidia-smi  # whether the driver answers"),
    Check("Environment", "environment", check_environment, _REPORT),
    Check("Compiled programs", "compilation cache", check_compilation_cache, ELSEWHERE),
    Check("Checkpoints from the hub", "hub cache", check_hub_cache, "pip install --upgrade huggingface_hub"),
    Check("Audio", "libsndfile", check_libsndfile, REINSTALL),
    *(Check("Audio", codec.name, codec_check(codec), REINSTALL) for codec in CODECS),
    Check("Self-test", "demo", with_device(check_demo), _MMS_JAX),
    Check("Self-test", "products", with_device(check_products), "pip install --force-reinstall jax jaxlib"),
    Check("Self-test", "accelerator", with_device(check_accelerator), "JAX_PLATFORMS=cpu mms-jax doctor"),
)


class Report(NamedTuple):
    """What all checks found, in order, and how long they took."""

    findings: tuple[Finding, ...]
    seconds: float

    @property
    def status(self) -> Status:
        """The worst that was found."""
        found = {finding.status for finding in self.findings}
        return next((status for status in (Status.PROBLEM, Status.WARNING) if status in found), Status.OK)

    def text(self, *, plain: bool) -> str:
        """A section for each part, and a line for each finding; ``plain`` in ASCII."""
        lines = []
        for section, findings in groupby(self.findings, key=lambda finding: finding.section):
            lines += [section, *(line for finding in findings for line in _lines(finding, WORDS if plain else MARKS))]
        text = "\n".join([*lines, "", self._summary()])
        return text.encode("ascii", "backslashreplace").decode() if plain else text

    def json(self) -> str:
        """The same for programs and bug reports."""
        fields = ("section", "status", "text", "remedy")
        findings = [{name: getattr(finding, name) for name in fields} for finding in self.findings]
        about = {"mms_jax": version(NAME), "status": self.status, "seconds": round(self.seconds, 2)}
        return json.dumps({**about, "findings": findings}, indent=1)

    def _summary(self) -> str:
        problems, warnings = (
            sum(finding.status == status for finding in self.findings) for status in (Status.PROBLEM, Status.WARNING)
        )
        counts = " and ".join(_count(*part) for part in ((problems, "problem"), (warnings, "warning")) if part[0])
        found = f"{counts}; -> is what to do" if counts else "nothing is wrong"
        return f"{NAME} {version(NAME) or 'not installed'}: {found} ({self.seconds:.1f} s)"


def examine(checks: Sequence[Check] = CHECKS) -> Report:
    """Make all checks; none of them keeps the others from being made."""
    start = time.perf_counter()
    with ThreadPoolExecutor(max_workers=1) as pool:
        begun = {check.name: pool.submit(_findings, check) for check in checks if check.aside}
        later = [begun[check.name].result if check.aside else partial(_findings, check) for check in checks]
        findings = tuple(finding for result in later for finding in result())
    return Report(findings, time.perf_counter() - start)


def _findings(check: Check) -> list[Finding]:
    return [
        finding._replace(section=check.section, text=discreet(finding.text), remedy=discreet(finding.remedy))
        for finding in _run(check)
    ]


def _run(check: Check) -> Iterator[Finding]:
    """The one place where every ``Exception`` is caught.

    What a check looks at is broken in ways that nobody foresaw, and the others must be made all the same. It is told as
    a problem, nothing is hidden; and a doctor's user wants to know the type. ``BaseException`` goes on: it is the
    user's interruption.
    """
    try:
        yield from check.run()
    except MMSError as error:  # which says what to do
        yield problem(f"{check.name}: {error}", check.remedy)
    except Exception as error:
        yield problem(f"{check.name} failed: {type(error).__name__}: {error}", check.remedy)


def run_doctor(form: str = "text") -> int:
    """Print what is found as "text" or "json"; returns the exit code, 1 if something is broken."""
    report = examine()
    print(report.json() if form == "json" else report.text(plain=not sys.stdout.isatty()))
    return 1 if report.status == Status.PROBLEM else 0


def _lines(finding: Finding, marks: dict[Status, str]) -> Iterator[str]:
    mark = marks[finding.status]
    indent = " " * (len(mark) + 3)
    yield from textwrap.wrap(f"  {mark} {finding.text}", WIDTH, subsequent_indent=indent, **WHOLE_WORDS)
    if finding.remedy:  # in one line, to be copied
        yield f"{indent}-> {finding.remedy}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
