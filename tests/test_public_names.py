"""What ``import mms_jax`` gives: every public name, found without waiting for what only models need."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import mms_jax


def run(program: str) -> str:
    """What a new process prints."""
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip()


def test_importing_waits_for_jax_and_for_nothing_that_only_models_need():
    program = "import sys, mms_jax; print(*({'jax', 'flax', 'soundfile', 'safetensors'} & set(sys.modules)))"
    assert run(program) == "jax"


@pytest.mark.parametrize("name", mms_jax.__all__)
def test_every_public_name_is_there_and_its_own_module_s(name):
    assert name in dir(mms_jax)
    value = getattr(mms_jax, name)
    assert getattr(mms_jax, name) is value
    assert vars(mms_jax)[name] is value  # looked for once
    if callable(value):
        assert getattr(sys.modules[value.__module__], name) is value


def test_names_are_listed_and_completed_before_they_are_imported():
    program = """
import rlcompleter, sys, mms_jax
found = dir(mms_jax)
completer = rlcompleter.Completer({"mms_jax": mms_jax})
assert completer.complete("mms_jax.load_t", 0).startswith("mms_jax.load_tts")
print(sorted(set(mms_jax.__all__) - set(found)), found == sorted(set(found)))
"""
    assert run(program) == "[] True"


def test_a_star_gives_what_is_public_and_the_function_named_as_a_package_stays_a_function():
    program = (
        "from mms_jax import *; import mms_jax; load_asr; print(callable(languages), mms_jax.languages is languages)"
    )
    assert run(program) == "True True"


def test_what_a_type_checker_is_told_is_what_is_imported_later():
    tree = ast.parse(Path(mms_jax.__file__).read_text(encoding="utf-8"))
    (told,) = (
        node.body for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    names = {alias.name: node.module for node in told if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert names == mms_jax._MODULES
    assert names.keys() <= set(mms_jax.__all__)


def test_an_unknown_name_is_an_attribute_error_that_names_it():
    with pytest.raises(AttributeError, match="'mms_jax' has no attribute 'load_asrr'"):
        _ = mms_jax.load_asrr  # pyright: ignore[reportAttributeAccessIssue]
    assert not hasattr(mms_jax, "load_asrr")


def test_a_broken_jax_is_told_at_import():
    program = """
import sys
sys.modules["jax"] = None  # as if it were not installed
try:
    import mms_jax
except ImportError as error:
    print(error.name)
"""
    assert run(program) == "jax"


@pytest.mark.parametrize("name", mms_jax._PACKAGES)
def test_a_module_need_not_be_imported_by_its_own_name(name):
    assert run(f"import mms_jax; print(mms_jax.{name}.__name__)") == f"mms_jax.{name}"
