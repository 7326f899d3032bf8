"""Evaluates names of a Python file without importing it.

Importing it would import torch. A name is evaluated when it is first used: the statements that bind it are executed,
and before them those that bind the names they use, in this file and in others that are read in the same way.
"""

import ast
import builtins
import importlib
import importlib.util
import logging
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from eagleray.contracts.visible import visible

LOG = logging.getLogger(__name__)
# Imported normally: they are fast to import, and declarations must be instances of their classes.
_IMPORTED = (
    "pydantic",
    "pydantic_core",
    "annotated_types",
    "typing_extensions",
    "numpy",
    "eagleray.contracts.errors",
    "eagleray.contracts.metric",
    "eagleray.contracts.ranges",
    "eagleray.contracts.recipe",
    "eagleray.contracts.view",
    *sys.stdlib_module_names,
)
_READ = ("eagleray", "eagleray_methods")  # packages that any file may use; a file may use its own package too


class Unreadable(Exception):
    """A name that the source alone cannot evaluate."""


class Names:
    """Names bound by statements of a file or class.

    Args:
        source: the file.
        body: the statements.
        bound: the values so far; the statements read and write them.
    """

    def __init__(self, source: "Source", body: list[ast.stmt], bound: dict[str, Any]):
        self.source, self.bound = source, bound
        self.statements: dict[str, list[ast.stmt]] = {}
        for statement in _flat(body):
            for name in _bound_by(statement):
                self.statements.setdefault(name, []).append(statement)
        self._done: set[ast.stmt] = set()
        self._open: set[str] = set()

    def value(self, name: str) -> Any:
        """Return the value of a name.

        Raises:
            Unreadable: nothing binds it, or it comes from a module that is not imported to read a declaration.
        """
        if name not in self.statements:
            return self._elsewhere(name)
        if name not in self._open:  # else one of its own statements uses it, as `SIZES.append(3)` does
            self._open.add(name)
            try:
                for statement in self.statements[name]:
                    if statement not in self._done or name not in self.bound:
                        self._execute(statement, name)
                        self._done.add(statement)
            finally:
                self._open.discard(name)
        return self.bound.get(name)

    def outlined(self, name: str) -> "Outline":
        """Return a class's outline; subclasses become outlines too."""
        node = self.statements[name][-1]
        assert isinstance(node, ast.ClassDef)
        self.bound[name] = outline = Outline.of(node, self)
        self._done.add(node)
        return outline

    def bases(self, node: ast.ClassDef) -> list[Any]:
        """Return a class's bases, or why one is unreadable."""
        return [self._base(base) for base in node.bases]

    def evaluated(self, expression: ast.expr) -> Any:
        """Return the value of an expression in these names."""
        self._provide(expression)
        self.source.announce()
        return eval(compile(ast.Expression(expression), str(self.source.path), "eval"), self.source.names.bound)

    def _elsewhere(self, name: str) -> Any:
        if self is not self.source.names:
            return self.source.names.value(name)
        if hasattr(builtins, name):
            return getattr(builtins, name)
        raise Unreadable(f"{name!r}, which {self.source.path.name} does not define")

    def _base(self, base: ast.expr) -> Any:
        try:
            return self.evaluated(base)
        except Unreadable as reason:
            return reason

    def _execute(self, statement: ast.stmt, name: str) -> None:
        if isinstance(statement, ast.Import | ast.ImportFrom):
            self.bound[name] = self.source.imported(statement, name)
        elif isinstance(statement, ast.ClassDef):
            self.bound[name] = self._class(statement)
        else:
            self._run(statement)

    def _class(self, node: ast.ClassDef) -> Any:
        """Create the class, or its outline if that fails."""
        if any(isinstance(base, Outline | Unreadable) for base in self.bases(node)):
            return Outline.of(node, self)
        try:
            self._run(node)
        except Unreadable:
            if node.bases or self is not self.source.names:
                raise
            return Outline.of(node, self)
        return self.bound[node.name]

    def _run(self, statement: ast.stmt) -> None:
        self._provide(statement)
        self.source.announce()
        code = compile(ast.Module(body=[statement], type_ignores=[]), str(self.source.path), "exec")
        exec(code, self.source.names.bound, self.bound)

    def _provide(self, node: ast.AST) -> None:
        """Evaluate all names that a piece of code uses."""
        for function in [each for each in ast.walk(node) if isinstance(each, ast.FunctionDef)]:
            self._import_later(function)
        own = set(_own(node))  # variables of lambdas and comprehensions, fields of classes
        for name in dict.fromkeys(_used(node)):
            with suppress(*[Unreadable] if name in own else ()):
                self.value(name)

    def _import_later(self, function: ast.FunctionDef) -> None:
        """Defer a function's slow imports; drop annotations needing them."""
        for part, field in [(arg, "annotation") for arg in ast.walk(function.args)] + [(function, "returns")]:
            if annotation := getattr(part, field, None):
                try:
                    self._provide(annotation)
                except Unreadable:
                    setattr(part, field, None)
        used = {node.id for part in function.body for node in ast.walk(part) if isinstance(node, ast.Name)}
        for name in sorted(used):
            try:
                self.value(name)
            except Unreadable:
                imports = self.source.names.statements.get(name, [])
                function.body[:0] = [each for each in imports if isinstance(each, ast.Import | ast.ImportFrom)]


class Outline(type):
    """A class whose parts execute only when used.

    Such as `SimCLR.recipes` or `SimCLR.Config`.
    """

    node_: ast.ClassDef
    names_: Names
    missing_: list[Unreadable]  # why bases are missing

    @classmethod
    def of(cls, node: ast.ClassDef, around: Names) -> "Outline":
        """Return a class's outline, with its readable bases."""
        bases = around.bases(node)
        docstring = {"__module__": around.source.shadow, "__doc__": ast.get_docstring(node, clean=False)}
        kept = tuple(base for base in bases if type(base) in (type, Outline))  # ABC, Protocol would bring metaclasses
        outline = cls(node.name, kept, docstring)
        outline.node_ = node
        outline.names_ = Names(around.source, node.body, {})
        outline.missing_ = [base for base in bases if isinstance(base, Unreadable)]
        return outline

    def __getattr__(cls, name: str) -> Any:
        for each in cls.__mro__:
            if isinstance(each, Outline) and name in each.names_.statements:
                return each.names_.value(name)
        raise AttributeError(name)


class Source:
    """The source of a module.

    Args:
        module: its name.
        path: its file.

    Raises:
        SyntaxError: the file is not Python.
    """

    def __init__(self, module: str, path: Path):
        self.module, self.path = module, path
        self.package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        self.tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
        self.shadow = f"_declared_{module.replace('.', '_')}"
        shadow = sys.modules[self.shadow] = ModuleType(self.shadow)  # pydantic looks names up in a class's module
        shadow.__package__ = self.package
        self.names = Names(self, self.tree.body, shadow.__dict__)
        self._announced = False

    def announce(self) -> None:
        """Log once that code of a user's file is about to run."""
        if not self._announced and not _is_in(self.module, _READ):
            path = visible(str(self.path))
            LOG.info("running code of %s, to read what it declares (see `eagleray docs security`)", path)
        self._announced = True

    def imported(self, statement: ast.Import | ast.ImportFrom, name: str) -> Any:
        """Return the value that an import binds."""
        alias = next(each for each in statement.names if name == _bound_to(each))
        if isinstance(statement, ast.Import):
            module = self._module(alias.name, name)
            return module if alias.asname else self._module(name, name)
        above = importlib.util.resolve_name("." * statement.level + (statement.module or ""), self.package)
        return getattr(self._module(above, name), alias.name)

    def _module(self, module: str, name: str) -> Any:
        if _is_in(module, _IMPORTED):
            return importlib.import_module(module)
        if not _is_in(module, (*_READ, self.module.partition(".")[0])):
            raise Unreadable(f"{name!r} of {module}, which is not imported to read a declaration")
        return _Module(module)


class _Module:
    """Stands for a module that is read, not imported."""

    def __init__(self, module: str):
        self._module = module

    def __getattr__(self, name: str) -> Any:
        source = find_source(self._module)
        if source is not None and name in source.names.statements:
            return source.names.value(name)
        if _spec(f"{self._module}.{name}") is None:
            raise Unreadable(f"{name!r} of {self._module}, which defines no such name")
        return _Module(f"{self._module}.{name}")


@cache
def find_source(module: str) -> Source | None:
    """Return the source of a module, if any.

    Raises:
        SyntaxError: the file is not Python.
    """
    spec = _spec(module)
    return None if spec is None or spec.origin is None else Source(module, Path(spec.origin))


def _spec(module: str) -> ModuleSpec | None:
    """Return a module's location without importing packages around it."""
    package = module.rpartition(".")[0]
    if not package:
        return importlib.util.find_spec(module)
    if package in sys.modules:
        return PathFinder.find_spec(module, getattr(sys.modules[package], "__path__", []))
    above = _spec(package)
    return PathFinder.find_spec(module, above.submodule_search_locations) if above is not None else None


def _is_in(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def _flat(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield statements, also within `try:` and `if TYPE_CHECKING:`."""
    for statement in body:
        is_for_types = isinstance(statement, ast.If) and ast.unparse(statement.test).endswith("TYPE_CHECKING")
        if isinstance(statement, ast.Try | ast.If) and (isinstance(statement, ast.Try) or is_for_types):
            yield from _flat(statement.body)
        else:
            yield statement


def _bound_by(statement: ast.stmt) -> set[str]:
    """Return the names that a statement binds or changes."""
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return {_bound_to(alias) for alias in statement.names}
    if isinstance(statement, ast.ClassDef | ast.FunctionDef):
        return {statement.name}
    if isinstance(statement, ast.AnnAssign) and statement.value is None:
        return set()
    if isinstance(statement, ast.Expr):
        return {_root(statement.value.func)} - {""} if isinstance(statement.value, ast.Call) else set()
    stored = (node for node in ast.walk(statement) if isinstance(getattr(node, "ctx", None), ast.Store | ast.Del))
    return {_root(node) for node in stored} - {""}


def _bound_to(alias: ast.alias) -> str:
    return alias.asname or alias.name.partition(".")[0]


def _root(node: ast.AST) -> str:
    """Return the root name, `a` of `a.b[0]`, or nothing."""
    while isinstance(node, ast.Attribute | ast.Subscript):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def _own(node: ast.AST) -> Iterator[str]:
    """Yield the names that code binds itself."""
    for each in ast.walk(node):
        if isinstance(each, ast.arg):
            yield each.arg
        elif isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store):
            yield each.id
        elif isinstance(each, ast.FunctionDef | ast.ClassDef):
            yield each.name


def _used(node: ast.AST) -> Iterator[str]:
    """Yield names that code looks up, outside functions' bodies."""
    remaining = [node]
    while remaining:
        each = remaining.pop()
        if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Load):
            yield each.id
        skipped = each.body if isinstance(each, ast.FunctionDef) else []
        remaining += [child for child in ast.iter_child_nodes(each) if child not in skipped]
