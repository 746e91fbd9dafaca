"""The packages: which versions are installed, and whether they are the ones that this release and jax ask for."""

from __future__ import annotations

import importlib
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator
from importlib import metadata

from mms_jax.pipelines.doctor.findings import Finding, ok, problem

NAME = "mms-jax"
SHOWN = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "ml_dtypes", "safetensors", "huggingface_hub")
SHOWN_TOO = ("datasets", "soundfile", "soxr", "uroman", "flashlight-text")
LOADED = ("jax", "jaxlib", "numpy")  # whose compiled parts must be those of the installed version
PLUGINS = ("jax-cuda12-plugin", "jax-cuda12-pjrt", "jax-cuda13-plugin", "jax-cuda13-pjrt", "libtpu")
WORDS, ROMANIZED = "ሰላም नमस्ते привет 中国 二十三", "salaame namaste privet zhongguo 23"  # each by another of its tables
# Without mms_jax, whose imports would take another second; in ASCII, whatever the locale.
ROMANIZE = f"from uroman import Uroman; print(ascii(Uroman().romanize_string({WORDS!a}))[1:-1])"
SECONDS = 60.0  # for a process that takes two


def check_versions() -> Iterator[Finding]:
    """What is installed, in two lines."""
    yield ok(f"{NAME} {version(NAME) or 'not installed'}; " + _versions(SHOWN))
    plugins = [name for name in PLUGINS if version(name)]
    yield ok(_versions((*SHOWN_TOO, *plugins)))


def check_requirements() -> Iterator[Finding]:
    """Whether what is installed is what this release asks for."""
    from packaging.specifiers import SpecifierSet

    try:
        python = str(metadata.metadata(NAME).json.get("requires_python") or "")
    except metadata.PackageNotFoundError:
        yield problem(f"{NAME} runs from a folder but is not installed, so its requirements are not known", _SOURCE)
        return
    if not SpecifierSet(python).contains(platform.python_version(), prereleases=True):
        yield problem(f"Python {platform.python_version()} runs, but {python} is needed", f"install Python {python}")
    faults = list(_unmet(metadata.requires(NAME) or []))
    yield from faults
    if not faults:
        yield ok(f"every package is in the range that {NAME} asks for")


_SOURCE = "pip install -e .  # in the folder that holds pyproject.toml"


def check_jaxlib() -> Iterator[Finding]:
    """Whether jaxlib and the plugins for GPUs are those of this jax, and the ones that are loaded."""
    from packaging.requirements import Requirement

    plugins = {name for name in PLUGINS if version(name)}
    needed = [Requirement(text) for text in metadata.requires("jax") or []]
    # For jaxlib what holds without extras; what is an extra's, holds once it is installed.
    asked = [str(r) for r in needed if r.name in plugins or (r.name == "jaxlib" and r.marker is None)]
    faults = list(_unmet(asked, extras=("", "cuda12", "cuda13", "tpu")))
    for fault in faults:
        yield fault._replace(
            text=f"{fault.text}, by jax {version('jax')}", remedy=_install(f"jax=={version('jax')}", upgrade=True)
        )
    for name in LOADED:
        loaded = importlib.import_module(name).__version__
        if loaded != version(name):
            yield problem(
                f"{name} {loaded} is loaded, but {version(name) or 'none'} is installed: there are two of it",
                f"unset PYTHONPATH; pip uninstall -y {name}; pip install {name}",
            )
    if not faults:
        yield ok(f"jaxlib {version('jaxlib')} fits jax {version('jax')}")


def check_uroman() -> Iterator[Finding]:
    """Whether text can be romanised, as the synthesis checkpoints of some languages need.

    In a process of its own: uroman reads its tables for two seconds, which in a thread would hold up all others.
    """
    command = [sys.executable, "-c", ROMANIZE]
    run = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    romanized = run.stdout.strip()
    if run.returncode != 0:
        why = (run.stderr.strip().splitlines() or [f"exit code {run.returncode}"])[-1]
        yield problem(f"no text can be romanised: {why}", reinstall("uroman"))
    elif romanized == ROMANIZED:
        yield ok(f"uroman romanises ({ROMANIZED})")
    else:
        yield problem(f"uroman spells {WORDS!a} as {romanized}, not {ROMANIZED}", reinstall("uroman"))


def reinstall(name: str) -> str:
    """The command that puts a package back as it should be."""
    return f"pip install --force-reinstall --no-deps {name}"


def _unmet(requirements: Iterable[str], *, extras: Iterable[str] = ("",)) -> Iterator[Finding]:
    from packaging.requirements import Requirement

    for requirement in map(Requirement, requirements):
        marker = requirement.marker
        if marker is not None and not any(marker.evaluate({"extra": extra}) for extra in extras):
            continue
        found, wanted = version(requirement.name), requirement.specifier
        if found is None:
            yield problem(f"{requirement.name} is not installed", _install(f"{requirement.name}{wanted}"))
        elif not wanted.contains(found, prereleases=True):
            text = f"{requirement.name} {found} is installed, but {wanted} is needed"
            yield problem(text, _install(f"{requirement.name}{wanted}"))


def _install(requirement: str, *, upgrade: bool = False) -> str:
    return f"pip install {'--upgrade ' if upgrade else ''}{shlex.quote(requirement)}"


def _versions(names: Iterable[str]) -> str:
    return ", ".join(f"{name} {version(name) or 'not installed'}" for name in names)


def version(name: str) -> str | None:
    """Which version of a package is installed, if any."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
