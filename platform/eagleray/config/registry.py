"""Methods, encoders and datasets by name: what each file declares, read from its source.

`eagleray check`, `eagleray schema` and `--help` must answer at once, and importing torch takes seconds. So a
file's declaration (docstring, `Config`, class variables) is read with `ast`: only the imports that cost
nothing and the declaring statements of its one class are executed. `load` imports the file itself.
"""

import ast
import difflib
import importlib
import importlib.util
import pkgutil
import sys
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from pydantic import BaseModel

from eagleray.contracts.errors import ConfigError

Kind = Literal["method", "encoder", "data", "evaluator"]

_PACKAGES: dict[Kind, str] = {
    "method": "eagleray_methods",
    "encoder": "eagleray.encoders",
    "data": "eagleray.datasets",
    "evaluator": "eagleray.evaluators",
}
_CONTRACTS: dict[Kind, tuple[str, ...]] = {
    "method": ("Method",),
    "encoder": ("Encoder", "TokenEncoder"),
    "data": ("Dataset",),
    "evaluator": ("Evaluator",),
}
WORDS: dict[Kind, str] = {"method": "method", "encoder": "encoder", "data": "dataset", "evaluator": "evaluator"}
_NEEDED: dict[Kind, tuple[str, ...]] = {
    "method": ("recipe", "small_recipe"),
    "encoder": (),
    "data": (),
    "evaluator": ("metrics",),
}
_CHEAP = (
    "pydantic",
    "eagleray.contracts.ranges",
    "eagleray.contracts.recipe",
    "eagleray.contracts.errors",
    "eagleray.contracts.evaluator",
    *sys.stdlib_module_names,
)


@dataclass(frozen=True)
class Declaration:
    """What a file says of the thing it defines."""

    kind: Kind
    name: str  # what a user types
    module: str  # where it is imported from
    Config: type[BaseModel]
    doc: str
    values: dict[str, Any]  # its class variables: labels, needs_tokens, recipe, …
    about: str = ""  # what its file says at its top: the paper, and what differs from it

    @property
    def summary(self) -> str:
        """The first line of its docstring."""
        return self.doc.strip().partition("\n")[0]

    @property
    def required(self) -> list[str]:
        """The settings that have no default."""
        return [name for name, field in self.Config.model_fields.items() if field.is_required()]

    @property
    def needs_run(self) -> bool:
        """Whether it works on what another run has trained, which is all that is ever required of a method."""
        return bool(self.required or self.values.get("needs_trained"))

    def load(self) -> type:
        """The class itself; imports its file, and with it torch."""
        return _the_class(importlib.import_module(self.module), self.kind)


def find(kind: Kind, name: str) -> Declaration:
    """The thing of that name; a dotted name reaches a module of the user's own.

    Raises:
        ConfigError: there is none; names the nearest.
    """
    if "." in name:
        return _read(kind, name)
    known = declared(kind)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"there is no {WORDS[kind]} {name!r}{hint} (there are: {', '.join(sorted(known))})")
    return known[name]


@cache
def declared(kind: Kind) -> dict[str, Declaration]:
    """All that ship with the project, by name."""
    package = _PACKAGES[kind]
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    modules = sorted(module.name for module in pkgutil.iter_modules(spec.submodule_search_locations))
    read = [_read(kind, f"{package}.{module}", module) for module in modules]
    return {name: replace(each, name=name) for each in read for name in each.values.get("names", (each.name,))}


@cache
def _read(kind: Kind, module: str, name: str | None = None) -> Declaration:
    path = _source(kind, module)
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    except SyntaxError as error:
        raise ConfigError(f"{path}, line {error.lineno}: {error.msg}") from error
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and _implements(node, kind)]
    if len(classes) != 1:
        raise ConfigError(f"{path} must define exactly one {_CONTRACTS[kind][0]}, and defines {len(classes)}")
    shell = _execute(tree, classes[0], path, f"_declared_{module.replace('.', '_')}")
    values = {k: v for k, v in vars(shell).items() if not k.startswith("_") and k != "Config"}
    if missing := [each for each in _NEEDED[kind] if each not in values]:
        raise ConfigError(f"{path}: {shell.__name__} declares no {' and no '.join(missing)}")
    config = getattr(shell, "Config", None) or type("Config", (BaseModel,), {}, frozen=True, extra="forbid")
    about = ast.get_docstring(tree) or ""
    return Declaration(kind, name or module, module, config, shell.__doc__ or "", values, about)


def _source(kind: Kind, module: str) -> Path:
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        spec = None
    if spec is None or spec.origin is None:
        raise ConfigError(f"there is no {WORDS[kind]} {module!r}: no such module can be imported from here")
    return Path(spec.origin)


def _implements(node: ast.ClassDef, kind: Kind) -> bool:
    names = [base.id if isinstance(base, ast.Name) else getattr(base, "attr", "") for base in node.bases]
    return any(name in _CONTRACTS[kind] for name in names)


def _execute(tree: ast.Module, node: ast.ClassDef, path: Path, name: str) -> type:
    """Runs the cheap imports, the constants and the declaring part of the class: no torch, no base class."""
    shell = ast.parse(f"class {node.name}: ...").body[0]
    assert isinstance(shell, ast.ClassDef)
    shell.body = [s for s in node.body if _declares(s)] or shell.body
    imports = [s for s in tree.body if _is_cheap_import(s)]
    code = ast.fix_missing_locations(ast.Module(body=[*imports, shell], type_ignores=[]))
    module = ModuleType(name)
    sys.modules[name] = module  # pydantic looks names up in a class's module
    try:
        exec(compile(code, str(path), "exec"), module.__dict__)
    except NameError as error:
        raise ConfigError(
            f"{path}: the declaration of {node.name} uses {error.name!r}; a Config and class variables may "
            "use literals, the standard library, pydantic, eagleray.contracts.ranges and .recipe alone"
        ) from error
    except Exception as error:
        raise ConfigError(f"{path}: the declaration of {node.name} cannot be read: {error}") from error
    return module.__dict__[node.name]


def _declares(statement: ast.stmt) -> bool:
    is_docstring = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    is_config = isinstance(statement, ast.ClassDef) and statement.name == "Config"
    is_value = isinstance(statement, ast.Assign | ast.AnnAssign) and statement.value is not None
    return is_docstring or is_config or is_value


def _is_cheap_import(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.ImportFrom):
        return statement.module != "__future__" and _is_cheap(statement.module or "")
    return isinstance(statement, ast.Import) and all(_is_cheap(alias.name) for alias in statement.names)


def _is_cheap(module: str) -> bool:
    return module in _CHEAP or module.partition(".")[0] in _CHEAP


def _the_class(module: ModuleType, kind: Kind) -> type:
    """The one class of a file that fulfils the contract (imported contracts and neighbours do not count)."""
    own = [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and value.__module__ == module.__name__
        and any(parent.__name__ in _CONTRACTS[kind] for parent in value.__mro__[1:])
    ]
    assert len(own) == 1, f"{module.__name__} was read as defining one {kind}, and defines {own}"
    return own[0]
