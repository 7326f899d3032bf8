"""The rules that an import graph can show: who may import what, and which way dependencies point."""

import ast
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ENGINE = ROOT / "platform/eagleray"
METHODS = ROOT / "methods/eagleray_methods"
FILES = sorted([*ENGINE.rglob("*.py"), *METHODS.rglob("*.py")])
METHOD_FILES = sorted(path for path in METHODS.glob("*.py") if path.stem != "__init__")
DATASETS = sorted(path for path in (ENGINE / "datasets").glob("*.py") if path.stem != "__init__")
ENCODERS = sorted(path for path in (ENGINE / "encoders").glob("*.py") if path.stem != "__init__")

# `--help`, `check` and `schema` answer at once, because none of these imports what takes seconds.
LIGHT = (
    "app.api app.cli app.directories app.plan app.ready config config.metrics config.schema config.search_points "
    "contracts.dataset contracts.errors contracts.metric contracts.ranges contracts.recipe contracts.report "
    "contracts.view data.facts report.analysis report.text runs.preflight runs.record"
)
AT_ONCE = ["eagleray", *(f"eagleray.{name}" for name in LIGHT.split())]
SLOW = {"torch", "torchvision", "timm", "ray", "mlflow", "sklearn", "pandas", "matplotlib", "optuna"}

# What a method may use: torch, ranges and settings, and the engine's few modules for methods.
FOR_METHODS = ("augment", "blocks.*", "contracts.*", "runs.restore")
# The folders, from the ground up: each imports from itself and from lower floors alone. `__init__` offers names lazily.
FLOORS = (
    "contracts",
    "storage",
    "blocks config datasets",
    "augment",
    "data",
    "evaluators",
    "runs",
    "loop report tracking encoders eagleray_methods",
    "pictures ray_backend",
    "app",
    "__main__",
)
LIBRARIES_FOR_METHODS = {"torch", "pydantic", "timm", *sys.stdlib_module_names}


@dataclass(frozen=True)
class Import:
    """One imported module, and where the statement is."""

    module: str
    at_top: bool  # runs when the file is imported
    for_types: bool  # under `if TYPE_CHECKING:`, so it never runs


class Imports(ast.NodeVisitor):
    """Collects the imports of a file."""

    def __init__(self):
        self.found: list[Import] = []
        self.at_top, self.for_types = True, False

    def visit_Import(self, node: ast.Import) -> None:
        self.found += [Import(alias.name, self.at_top, self.for_types) for alias in node.names]

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        assert node.level == 0, "imports are absolute here"
        for alias in node.names:  # `from eagleray import distributed` imports a module too
            inner = f"{node.module}.{alias.name}"
            self.found.append(Import(inner if file_of(inner) else str(node.module), self.at_top, self.for_types))

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        before, self.at_top = self.at_top, False
        self.generic_visit(node)
        self.at_top = before

    def visit_If(self, node: ast.If) -> None:
        before, self.for_types = self.for_types, self.for_types or ast.unparse(node.test) == "TYPE_CHECKING"
        self.generic_visit(node)
        self.for_types = before


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imports(path: Path) -> tuple[Import, ...]:
    visitor = Imports()
    visitor.visit(parsed(path))
    return tuple(visitor.found)


def file_of(module: str) -> Path | None:
    """Return the file of one of our own modules."""
    parts = module.split(".")
    source = {"eagleray": ROOT / "platform", "eagleray_methods": ROOT / "methods"}.get(parts[0])
    if source is None:
        return None
    places = source.joinpath(*parts).with_suffix(".py"), source.joinpath(*parts, "__init__.py")
    return next((place for place in places if place.is_file()), None)


def module_of(path: Path) -> str:
    source = ROOT / ("platform" if path.is_relative_to(ENGINE) else "methods")
    parts = path.relative_to(source).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def top_level(module: str) -> str:
    return module.partition(".")[0]


def folder_of(module: str) -> str:
    """Return the folder of a module: `runs` of `eagleray.runs.record`; methods are in `eagleray_methods`."""
    package, _, rest = module.partition(".")
    return rest.partition(".")[0] if package == "eagleray" and rest else package


@cache
def reached(module: str, *, for_types: bool = False) -> frozenset[str]:
    """Return all our own modules that this one can import, directly or through others.

    With `for_types`, what is imported for type checkers alone counts too.
    """
    seen, open_ = set(), [module]
    while open_:
        path = file_of(here := open_.pop())
        assert path is not None
        new = {each.module for each in imports(path) if for_types >= each.for_types and file_of(each.module)}
        new -= {*seen, here}  # a function that is sent elsewhere imports its own module there
        seen |= new
        open_ += new
    return frozenset(seen)


def run_python(code: str, *arguments: str) -> None:
    """Run code in a new interpreter in which `block(names)` makes imports fail."""
    blocker = """
        import sys
        def block(names):
            class Blocker:
                def find_spec(self, name, path=None, target=None):
                    if name.partition(".")[0] in names:
                        raise ModuleNotFoundError(f"{name} must not be imported here", name=name)
            sys.meta_path.insert(0, Blocker())
    """
    script = textwrap.dedent(blocker) + textwrap.dedent(code)
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]


def test_the_source_roots_are_no_packages():
    """platform/__init__.py would shadow the standard library's `platform`."""
    assert not (ROOT / "platform/__init__.py").exists()
    assert not (ROOT / "methods/__init__.py").exists()


@pytest.mark.parametrize(("library", "where"), [("ray", "ray_backend*"), ("mlflow", "tracking*")])
def test_ray_and_mlflow_are_imported_in_their_own_files_only(library: str, where: str):
    users = [path for path in FILES if any(top_level(each.module) == library for each in imports(path))]
    assert users
    assert [module for module in map(module_of, users) if not fnmatch(module, f"eagleray.{where}")] == []


@pytest.mark.parametrize(
    "path",
    [*map(file_of, AT_ONCE), *DATASETS],
    ids=module_of,
)
def test_what_must_answer_at_once_imports_nothing_slow_at_its_top(path: Path):
    run = [each.module for each in imports(path) if each.at_top and not each.for_types]
    assert [module for module in run if top_level(module) in SLOW] == []


@pytest.mark.slow
@pytest.mark.parametrize("module", AT_ONCE)
def test_what_must_answer_at_once_imports_nothing_slow_through_others_either(module: str):
    run_python(f"block({SLOW!r}); import {module}")


@pytest.mark.parametrize("path", METHOD_FILES, ids=module_of)
def test_a_method_uses_torch_and_the_modules_made_for_methods(path: Path):
    for each in imports(path):
        is_for_methods = any(fnmatch(each.module, f"eagleray.{pattern}") for pattern in FOR_METHODS)
        assert is_for_methods or top_level(each.module) in LIBRARIES_FOR_METHODS, each.module


def test_imports_never_go_round_in_a_circle():
    assert [module for module in map(module_of, FILES) if module in reached(module, for_types=True)] == []


def test_imports_between_folders_go_down_only():
    """A folder imports from itself and from folders of lower floors; nothing else, not even for type checkers."""
    floor = {folder: number for number, folders in enumerate(FLOORS) for folder in folders.split()}
    wrong = [
        f"{module_of(path)} imports {each.module}"
        for path in FILES
        for each in imports(path)
        if top_level(each.module) == "eagleray" and module_of(path) != "eagleray"  # which offers names of all folders
        if (here := folder_of(module_of(path))) != (there := folder_of(each.module))
        if floor[here] <= floor[there]
    ]
    assert wrong == []


def test_every_folder_stands_on_a_floor():
    rooms = {path.name for path in ENGINE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    loose = {path.stem for path in ENGINE.glob("*.py")} - {"__init__"}
    named = " ".join(FLOORS).split()
    assert sorted(named) == sorted({*rooms, *loose, "eagleray_methods"})
    assert loose == {"loop", "__main__"}


def test_a_folder_of_tests_mirrors_each_folder_of_the_engine():
    rooms = {path.name for path in ENGINE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    tested = {path.parent.name for path in (ROOT / "tests").rglob("test_*.py")}
    assert {*rooms, "methods"} <= tested


def test_random_generators_are_seeded_in_one_file():
    """So all streams of a seed can be read in `contracts/seeds.py`, and none is used twice."""
    seeding = ("manual_seed", "default_rng", "seed", "Random", "RandomState", "SeedSequence")
    found = [
        f"{module_of(path)}:{node.lineno}"
        for path in FILES
        if module_of(path) != "eagleray.contracts.seeds"
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in seeding
    ]
    assert found == []


def test_nothing_made_for_tests_is_imported():
    """What replaces a function at run time has a place for it in the code."""
    assert {top_level(each.module) for path in FILES for each in imports(path)}.isdisjoint({"unittest", "pytest"})


def test_the_engine_imports_no_method():
    """Methods are found by name, so the engine's files need not know which there are."""
    users = [
        path
        for path in FILES
        if path.is_relative_to(ENGINE) and any(top_level(each.module) == "eagleray_methods" for each in imports(path))
    ]
    assert users == []


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_nothing_asks_which_method_it_is(path: Path):
    names = {method.stem for method in METHOD_FILES}
    compared = [
        constant.value
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Compare | ast.MatchValue)
        for constant in ast.walk(node)
        if isinstance(constant, ast.Constant) and isinstance(constant.value, str)
    ]
    assert names.isdisjoint(compared)


@pytest.mark.parametrize("path", [*METHOD_FILES, *DATASETS, *ENCODERS], ids=module_of)
def test_files_whose_declarations_are_read_from_source_keep_real_annotations(path: Path):
    assert "__future__" not in {each.module for each in imports(path)}


def test_files_are_named_after_what_is_in_them():
    vague = {"utils", "util", "helpers", "common", "manager", "base", "misc"}
    assert {path.stem for path in FILES}.isdisjoint(vague)


@pytest.mark.slow
def test_training_needs_neither_ray_nor_mlflow(tmp_path: Path):
    """Only torch is needed: for all modules below the loop, all methods, and a real run."""
    run_python(
        """
        block({"ray", "mlflow", "optuna", "typer", "rich"})
        import importlib, pathlib, sys
        from eagleray.config import load_run
        from eagleray.loop import train
        for name in sys.argv[2:]:
            importlib.import_module(name)
        run = load_run(None, ["data.limit=64", "batch_size=16", "epochs=1", "encoder.width=4", "threads=1"])
        *_, last = train(run, pathlib.Path(sys.argv[1]))
        assert last.done
        """,
        str(tmp_path / "run"),
        *map(module_of, METHOD_FILES),
        *sorted(reached("eagleray.loop")),
    )
