"""Methods, encoders, datasets and other parts by name.

Their declarations are read from the source of their files. `eagleray check`, `eagleray schema` and `--help` must be
fast, and importing torch takes seconds. So a declaration (docstring, `Config`, class variables) is read without
importing its file, and checked against the contract, which is read in the same way. `load` imports the file itself.
"""

import ast
import difflib
import importlib
import importlib.util
import pkgutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, TypeAdapter, ValidationError

from eagleray.config.mistakes import nearest, sentences
from eagleray.config.plugin_files import PluginFile, here_importable
from eagleray.config.recorded import settings_of
from eagleray.config.source import Outline, Source, Unreadable, find_source
from eagleray.config.timm_names import timm_family, timm_names
from eagleray.contracts.errors import ConfigError
from eagleray.contracts.recipe import Recipe, Recipes

Kind = Literal["method", "encoder", "data", "evaluator", "scheduler", "search"]

_PACKAGES: dict[Kind, str] = {
    "method": "eagleray_methods",
    "encoder": "eagleray.encoders",
    "data": "eagleray.datasets",
    "evaluator": "eagleray.evaluators",
    "scheduler": "eagleray.ray_backend.schedulers",
    "search": "eagleray.ray_backend.searches",
}
_CONTRACTS: dict[Kind, tuple[str, str]] = {
    "method": ("eagleray.contracts.method", "Method"),
    "encoder": ("eagleray.contracts.encoder", "Encoder"),
    "data": ("eagleray.contracts.dataset", "Dataset"),
    "evaluator": ("eagleray.contracts.evaluator", "Evaluator"),
    "scheduler": ("eagleray.contracts.scheduler", "Scheduler"),
    "search": ("eagleray.contracts.search", "Search"),
}
WORDS: dict[Kind, str] = {
    **{kind: kind for kind in get_args(Kind)},
    "data": "dataset",
}


@dataclass(frozen=True)
class Declaration:
    """A file's declaration: class, settings and class variables."""

    kind: Kind
    name: str  # what a user types
    module: str  # from which it is imported; of a file of a user's own, its path
    class_name: str
    Config: type[BaseModel]
    doc: str
    values: dict[str, Any]  # the contract's class variables: needs, recipes, names, …
    about: str = ""  # the file's own docstring: the paper, and what differs from it

    @property
    def summary(self) -> str:
        """The first line of its docstring."""
        return self.doc.strip().partition("\n")[0]

    @property
    def required(self) -> list[str]:
        """The settings without a default."""
        return [name for name, field in self.Config.model_fields.items() if field.is_required()]

    @property
    def needs(self) -> frozenset[str]:
        """What a method requires."""
        return self.values.get("needs", frozenset())

    @property
    def needs_run(self) -> bool:
        """Whether it needs another trained run.

        No method has required settings for anything else.
        """
        return bool(self.required or "trained_encoder" in self.needs)

    def load(self) -> type:
        """Import the file, with torch, and return the class."""
        if file := PluginFile.of(self.module):
            return getattr(file.module, self.class_name)
        importlib.import_module(_CONTRACTS[self.kind][0])  # before: torch looks for packages that are not installed
        with here_importable():
            return getattr(importlib.import_module(self.module), self.class_name)

    def real(self, config: BaseModel) -> BaseModel:
        """Convert validated settings to the real class's Config."""
        return settings_of(self.load().Config, config.model_dump(mode="json"))


def find(kind: Kind, name: str) -> Declaration:
    """Return the declaration of a name.

    `./fancy.py` is a file of the user's own, `./fancy.py:Fancy` one class in it, and a dotted name a module.

    Raises:
        ConfigError: the name is unknown; names the nearest.
    """
    if file := PluginFile.of(name):
        return _read(kind, _source(kind, file), str(file), class_name=file.class_name)
    if "." in name and all(name.split(".")):
        with here_importable():
            return _read(kind, _source(kind, name), name)
    known = declared(kind)
    if kind == "encoder" and name not in known and (family := timm_family(name)):
        return replace(known[family], name=name)
    if name not in known:
        near = difflib.get_close_matches(name.lower(), [*known, *(timm_names() if kind == "encoder" else ())], n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        if kind == "data" and Path(name).is_dir():
            hint = f"; did you mean data=folder data.root={name}?"
        raise ConfigError(f"there is no {WORDS[kind]} {name!r}{hint} (there are: {', '.join(sorted(known))})")
    return known[name]


@cache
def declared(kind: Kind) -> dict[str, Declaration]:
    """Return all shipped declarations by name."""
    package = _PACKAGES[kind]
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    modules = sorted(module.name for module in pkgutil.iter_modules(spec.submodule_search_locations))
    sources = ((module, f"{package}.{module}") for module in modules)
    read = [_read(kind, _source(kind, module), module, name) for name, module in sources]
    return {name: replace(each, name=name) for each in read for name in each.values.get("names", (each.name,))}


def found_here(kind: Kind) -> dict[str, Declaration]:
    """Return what the Python files of the working directory declare.

    The names are `./fancy.py`, as a user types them.
    """
    found: dict[str, Declaration] = {}
    for path in sorted(Path().glob("*.py")):
        # An editor's lock is a link to nowhere.
        if not path.is_file() or "eagleray.contracts" not in path.read_text(encoding="utf-8", errors="ignore"):
            continue
        classes = kinds_in(path).get(kind, ())
        names = [f"./{path}"] if len(classes) == 1 else [f"./{path}:{each}" for each in classes]
        found |= {name: replace(find(kind, name), name=name) for name in names}
    return found


def kinds_in(path: Path) -> dict[Kind, list[str]]:
    """Return the classes in a file that fulfil a contract, by kind.

    Raises:
        ConfigError: there is no such file, or it is not Python.
    """
    source = _source("method", PluginFile(path.absolute()))
    classes = {kind: [each.__name__ for each in _classes(source, kind)[0]] for kind in get_args(Kind)}
    return {kind: names for kind, names in classes.items() if names}


@cache
def _read(
    kind: Kind, source: Source, module: str, name: str | None = None, *, class_name: str | None = None
) -> Declaration:
    with _errors_named(str(source.path)):
        outline = _the_class(source, kind, class_name)
        values, config = dict(_values(outline, _contract(kind))), _config(outline)
        if "recipes" in values:
            _check_settings(values["recipes"], config)
    about = ast.get_docstring(source.tree) or ""
    return Declaration(kind, name or module, module, outline.__name__, config, outline.__doc__ or "", values, about)


def _source(kind: Kind, module: str | PluginFile) -> Source:
    try:
        source = module.source if isinstance(module, PluginFile) else find_source(module)
    except SyntaxError as error:
        raise ConfigError(f"{error.filename}, line {error.lineno}: {error.msg}") from error
    if source is None:
        raise ConfigError(f"there is no {WORDS[kind]} {module!r}: no such module can be imported from here")
    return source


@contextmanager
def _errors_named(path: str) -> Iterator[None]:
    """Turn reading errors into sentences that name the file."""
    try:
        yield
    except Unreadable as reason:
        raise ConfigError(
            f"{path}: the declaration uses {reason}; the Config and the class variables of the contract are read "
            "without torch, from the standard library, pydantic, numpy, eagleray.contracts and the file's own package"
        ) from reason
    except ValidationError as error:
        mistakes = "; ".join(sentences(error.errors(), {**Recipe.model_fields, **Recipes.model_fields}))
        raise ConfigError(f"{path}: {error.title}: {mistakes}") from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    except Exception as error:
        raise ConfigError(f"{path}: the declaration cannot be read: {error}") from error


@dataclass(frozen=True)
class Contract:
    """What a class of a kind must declare.

    The names and types are read from the contract's source.
    """

    outline: Outline
    types: dict[str, TypeAdapter]  # of its class variables
    names: frozenset[str]  # all names that it defines


@cache
def _contract(kind: Kind) -> Contract:
    module, name = _CONTRACTS[kind]
    source = find_source(module)
    assert source is not None
    outline = source.names.outlined(name)
    annotated = {
        statement.target.id: statement.annotation
        for statement in outline.node_.body
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
    }
    types = {
        name: TypeAdapter(get_args(source.names.evaluated(annotation))[0])
        for name, annotation in annotated.items()
        if ast.unparse(annotation).startswith("ClassVar[")
    }
    return Contract(outline, types, frozenset({*annotated, *outline.names_.statements}))


def _the_class(source: Source, kind: Kind, wanted: str | None) -> Outline:
    """Return the one class that fulfils the contract, or the wanted one."""
    classes, missing = _classes(source, kind)
    chosen = [one for one in classes if wanted in (None, one.__name__)]
    if len(chosen) == 1:
        return chosen[0]
    contract = _contract(kind).outline.__name__
    names = "".join(f"{', ' if number else ': '}{one.__name__}" for number, one in enumerate(classes))
    if wanted and classes:
        raise ConfigError(f"defines no {contract} called {wanted}{nearest(wanted, [c.__name__ for c in classes])}")
    why = "".join(missing) if not classes else f"; name one as FILE.py:{classes[0].__name__}"
    raise ConfigError(f"must define exactly one {contract}, and defines {len(classes)}{names}{why}")


def _classes(source: Source, kind: Kind) -> tuple[list[Outline], list[str]]:
    """Return the classes that fulfil the contract, and unreadable bases.

    The classes' own base classes do not count.
    """
    contracts = {each: _contract(each).outline for each in get_args(Kind)}  # before a base is read as a plain class
    contract, classes, missing = contracts[kind], list[Outline](), list[str]()
    for node in [each for each in source.tree.body if isinstance(each, ast.ClassDef)]:
        bases = source.names.bases(node)
        missing += [f"; {node.name} inherits from {base}" for base in bases if isinstance(base, Unreadable)]
        if any(isinstance(base, Outline) and issubclass(base, contract) for base in bases):
            classes.append(source.names.value(node.name))
    last = [one for one in classes if not any(issubclass(other, one) for other in classes if other is not one)]
    return last, missing


def _values(outline: Outline, contract: Contract) -> Iterator[tuple[str, Any]]:
    """Yield the contract's class variables, as declared."""
    for each in outline.__mro__:
        if isinstance(each, Outline) and each not in contract.outline.__mro__:
            _check_names(each, contract)
    for name, adapter in contract.types.items():
        if not hasattr(outline, name):
            raise ConfigError(f"{outline.__name__} declares no {name}")
        value = getattr(outline, name)
        try:
            adapter.validate_python(value, strict=True)
        except ValidationError as error:
            is_model = any(each["type"] == "model_type" for each in error.errors())
            model_error = f"{name} must be {name.title()}(…), not {value!r}"
            mistakes = [model_error] if is_model else sentences(error.errors(), {}, name)
            raise ConfigError(f"{outline.__name__}: {'; '.join(mistakes)}") from error
        yield name, value


def _check_names(outline: Outline, contract: Contract) -> None:
    """Raise a ConfigError for a misspelt class variable.

    Its name is almost one of the contract's.
    """
    words = {name: name for name in ("Config", *contract.types)}
    if "recipes" in words:
        words |= {field: f"recipes=Recipes({field}=…)" for field in Recipes.model_fields}
    for name, (statement, *_) in outline.names_.statements.items():
        is_value = isinstance(statement, ast.Assign | ast.AnnAssign | ast.ClassDef)
        if not is_value or name.startswith("_") or name in contract.names:
            continue
        if near := difflib.get_close_matches(name, words, 1, 0.6):
            raise ConfigError(
                f"{outline.__name__} declares {name}, which nothing reads; did you mean {words[near[0]]}? "
                f"(for a variable of your own, write _{name})"
            )


def _config(outline: Outline) -> type[BaseModel]:
    config = outline.Config
    if isinstance(config, Outline) and config.missing_:
        raise config.missing_[0]
    if not (isinstance(config, type) and issubclass(config, BaseModel)):
        mistake = f"the Config of {outline.__name__} is not a pydantic model"
        raise ConfigError(f'{mistake}; write class Config(BaseModel, frozen=True, extra="forbid")')
    if config.model_config.get("extra") != "forbid":
        mistake = f"the Config of {outline.__name__} would silently ignore misspelt settings"
        raise ConfigError(f'{mistake}; write class Config(…, frozen=True, extra="forbid")')
    config.model_rebuild()  # raises an error for an unknown name in an annotation
    return config


def _check_settings(recipes: Recipes, config: type[BaseModel]) -> None:
    for key in recipes.small_settings:
        if key not in config.model_fields:
            raise ConfigError(
                f"small_settings has {key}, but Config has no such setting{nearest(key, config.model_fields)}"
            )
