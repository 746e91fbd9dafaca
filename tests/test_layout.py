"""The rules of the code base that a machine can keep: who imports whom, what is never used, what is documented."""

import ast
import graphlib
import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import pytest
from jaxtyping import TypeCheckError

from mms_jax.models.products import matmul

ROOT = Path(__file__).parents[1]
MAX_FILE_LINES = 399  # a file is read in one sitting
MAX_CONTRIBUTING_LINES = 45

# What stands on a line may import from the lines above it, and from its own line as long as nothing goes in a circle.
LAYERS = (
    {"errors"},
    {"files", "memory"},
    {"audio", "config", "containers", "features", "languages", "text"},
    {"ctc", "models"},
    {"checkpoint", "parallel"},
    {"pipelines", "training"},
    {"cli", "demo", "public names"},
)
ELSEWHERE = "other packages"
LAYER_OF = {name: layer for layer, names in enumerate(LAYERS) for name in names} | {ELSEWHERE: -1}

TORCH = {"torch", "torchaudio", "torchvision", "transformers"}  # the reference, needed by tests and benchmarks only
UNPICKLERS = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}  # they run what a file says
OUTSIDERS = {"convert", "experiments", "tests"}  # they import mms_jax, never the other way round
RUNS_TEXT = {"eval", "exec", "compile", "__import__"}
IMPORT_PROBE = """
import sys, mms_jax
heavy = {"torch", "transformers", "datasets"} & set(sys.modules)
sys.exit(f"import mms_jax imports {heavy}" if heavy else 0)
"""


def _files(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def _parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def _module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def _imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Every import, lazy ones included, as (line, dotted name of what is imported)."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, alias.name) for alias in names)
            case ast.ImportFrom(level=0, module=str(module), names=names):
                yield from ((node.lineno, f"{module}.{alias.name}") for alias in names)
            case ast.ImportFrom():
                raise AssertionError(f"line {node.lineno}: a relative import; write it out from mms_jax")
            case ast.Call(func=ast.Attribute(attr="import_module"), args=[ast.Constant(value=str(module)), *_]):
                yield node.lineno, module


def _forbidden_imports(tree: ast.AST, forbidden: set[str]) -> list[str]:
    return [f"{line}: imports {name}" for line, name in _imports(tree) if name.split(".")[0] in forbidden]


def _runs_text_or_pickles(tree: ast.AST) -> list[str]:
    """Calls through which a file or a string becomes code."""
    found = []
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id=name)) if name in RUNS_TEXT:
                found.append(f"{node.lineno}: calls {name}")
            case ast.keyword(arg="allow_pickle", value=value) if not _is_false(value):
                found.append(f"{value.lineno}: allows pickles")
            case ast.Attribute(attr="read_pickle"):
                found.append(f"{node.lineno}: reads a pickle")
    return found


def _is_false(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is False


def _component(name: str) -> str:
    """The part of mms_jax that a dotted name belongs to."""
    package, *rest = name.split(".")
    if package != "mms_jax":
        return ELSEWHERE
    return rest[0] if rest and rest[0] in LAYER_OF else "public names"


def _upward_imports(component: str, tree: ast.AST) -> list[str]:
    imported = [(line, name, _component(name)) for line, name in _imports(tree)]
    return [
        f"{line}: {component} imports {name}" for line, name, other in imported if LAYER_OF[other] > LAYER_OF[component]
    ]


def _in_files(files: list[Path], check) -> list[str]:
    assert files
    return [f"{path.relative_to(ROOT)}:{fault}" for path in files for fault in check(_parse(path))]


def test_every_part_of_the_package_has_a_place_in_the_layers():
    parts = {path.relative_to(ROOT / "mms_jax").parts[0].removesuffix(".py") for path in _files("mms_jax")}
    assert parts - {"__init__"} <= LAYER_OF.keys(), "give the new part a line of LAYERS"


def test_imports_go_down_the_layers():
    faults = [
        f"{path.relative_to(ROOT)}:{fault}"
        for path in _files("mms_jax")
        for fault in _upward_imports(_component(_module_name(path)), _parse(path))
    ]
    assert faults == []


def test_parts_do_not_import_each_other_in_a_circle():
    graph: dict[str, set[str]] = {}
    for path in _files("mms_jax"):
        component = _component(_module_name(path))
        others = {_component(name) for _, name in _imports(_parse(path))}
        graph.setdefault(component, set()).update(others - {ELSEWHERE, component})
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_the_package_does_not_import_what_is_built_on_it():
    assert _in_files(_files("mms_jax"), lambda tree: _forbidden_imports(tree, OUTSIDERS)) == []


def test_torch_is_imported_by_tests_and_benchmarks_only():
    benchmarks = ROOT / "experiments" / "benchmarks"
    files = [path for path in _files("mms_jax", "convert", "experiments") if benchmarks not in path.parents]
    assert _in_files(files, lambda tree: _forbidden_imports(tree, TORCH)) == []


def test_the_package_never_unpickles_or_runs_text():
    assert _in_files(_files("mms_jax", "convert"), lambda tree: _forbidden_imports(tree, UNPICKLERS)) == []
    assert _in_files(_files("mms_jax", "convert"), _runs_text_or_pickles) == []


@pytest.mark.parametrize(
    "source",
    ["import torch.nn", "def f():\n    from torch import nn", "import importlib\nimportlib.import_module('torch.nn')"],
)
def test_a_forbidden_import_is_noticed_wherever_it_hides(source):
    assert _forbidden_imports(ast.parse(source), TORCH)
    assert not _forbidden_imports(ast.parse(source.replace("torch", "torch_free")), TORCH)


@pytest.mark.parametrize(
    "source", ["eval('1')", "np.load(f, allow_pickle=True)", "np.load(f, allow_pickle=yes)", "pandas.read_pickle(f)"]
)
def test_running_text_is_noticed(source):
    assert _runs_text_or_pickles(ast.parse(source))


@pytest.mark.parametrize("source", ["model.eval()", "re.compile('a')", "np.load(f, allow_pickle=False)"])
def test_harmless_namesakes_are_left_alone(source):
    assert not _runs_text_or_pickles(ast.parse(source))


@pytest.mark.parametrize(
    "source", ["from mms_jax import cli", "from mms_jax import load_asr", "import mms_jax.pipelines.asr"]
)
def test_an_upward_import_is_noticed(source):
    assert _upward_imports("models", ast.parse(source))
    assert not _upward_imports("cli", ast.parse(source))


def test_files_are_short_enough_to_read():
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in _files(*OUTSIDERS, "mms_jax")}
    assert {str(path.relative_to(ROOT)): n for path, n in lengths.items() if n > MAX_FILE_LINES} == {}
    assert len((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").splitlines()) <= MAX_CONTRIBUTING_LINES


def test_importing_the_package_is_light_and_silent():
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", IMPORT_PROBE], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def test_every_exported_name_is_documented():
    exporting = [path for path in _files("mms_jax") if "__all__" in path.read_text(encoding="utf-8")]
    modules = [importlib.import_module(_module_name(path)) for path in exporting]
    assert modules
    exported = [(module.__name__, name, getattr(module, name)) for module in modules for name in module.__all__]
    assert [f"{module}.{name}" for module, name, value in exported if _lacks_docstring(value)] == []


def _lacks_docstring(value) -> bool:
    if not callable(value):
        return False  # a constant: its comment is not to be seen from here
    written = (vars(value).get("__doc__") if inspect.isclass(value) else value.__doc__) or ""
    return not written or written.startswith(f"{value.__name__}(")  # a signature: made up by dataclass or NamedTuple


def test_a_docstring_nobody_wrote_does_not_count():
    assert _lacks_docstring(type("Inherits", (ValueError,), {}))
    assert _lacks_docstring(NamedTuple("Pair", [("a", int)]))
    assert _lacks_docstring(lambda: 0)
    assert not _lacks_docstring(matmul)


def test_the_readme_maps_the_whole_package():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    layout = re.search(r"^## Layout\n+```\n(.*?)^```", readme, re.DOTALL | re.MULTILINE)
    assert layout is not None
    mapped = set(re.findall(r"[\w.-]+(?:/|\.\w+)", layout[1]))
    parts = [path for path in (ROOT / "mms_jax").iterdir() if not path.name.startswith((".", "__pycache__"))]
    assert sorted({f"{path.name}/" if path.is_dir() else path.name for path in parts} - mapped) == []


def test_shapes_are_checked_in_every_module_that_annotates_them():
    imports = {path: [name for _, name in _imports(_parse(path))] for path in _files("mms_jax")}
    annotated = [path for path, names in imports.items() if any(name.startswith("jaxtyping.") for name in names)]
    loaders = {path.name: importlib.import_module(_module_name(path)).__loader__ for path in annotated}
    assert loaders
    assert [name for name, loader in loaders.items() if not type(loader).__module__.startswith("jaxtyping")] == []


@pytest.mark.parametrize(
    ("x", "kernel"),
    [
        (jnp.zeros((2, 3)), jnp.zeros((4, 5))),  # the axes that must agree do not
        (jnp.zeros((2, 3)), jnp.zeros((1, 3, 5))),  # an axis too many
        (jnp.zeros((2, 3), jnp.int32), jnp.zeros((3, 5))),  # not a float
    ],
)
def test_a_wrong_shape_is_caught_where_it_enters(x, kernel):
    assert matmul(jnp.zeros((2, 3)), jnp.zeros((3, 5)), dtype=jnp.float32).shape == (2, 5)
    with pytest.raises(TypeCheckError, match=r"parameters of mms_jax[.]models[.]products[.]matmul"):
        matmul(x, kernel, dtype=jnp.float32)
