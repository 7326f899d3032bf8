"""Settings that were validated once and are read again: their types are parsed, their own validators do not run.

A Config may hold `Annotated[float, AfterValidator(lambda v: v / 100)]`, typed in percent. Its file then records the
result, and whoever reads the file must not divide once more.
"""

from collections.abc import Collection, Mapping
from functools import cache, partial
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticSerializationError, SchemaValidator

Model = TypeVar("Model", bound=BaseModel)

_FUNCTIONS = ("function-after", "function-before", "function-wrap", "function-plain")


def settings_of(model: type[Model], values: Mapping[str, Any], recorded: Collection[str] | None = None) -> Model:
    """Return settings as an instance of their model.

    Args:
        model: the Config.
        values: the settings, as typed or as recorded.
        recorded: those of them that have been validated before; None: all.

    Raises:
        ValidationError: a value is not one that the model takes.
    """
    before = frozenset(values if recorded is None else recorded) & set(model.model_fields)
    return _validator(model, before).validate_python(dict(values)) if before else model.model_validate(values)


def lost(config: BaseModel) -> list[str]:
    """Return the settings that are others once they have been recorded and read again."""
    try:
        again = settings_of(type(config), config.model_dump(mode="json", warnings="error"))
    except ValidationError as error:
        return [str(each["loc"][0]) if each["loc"] else each["msg"] for each in error.errors()]
    except PydanticSerializationError as error:
        return [str(error)]
    return [name for name in type(config).model_fields if getattr(again, name) != getattr(config, name)]


@cache
def _validator(model: type[BaseModel], recorded: frozenset[str]) -> SchemaValidator:
    return SchemaValidator(_model(model.__pydantic_core_schema__, recorded))


def _model(schema: Any, recorded: frozenset[str]) -> Any:
    """The schema of a model, without the functions in recorded fields; those that check the whole stay."""
    if not isinstance(schema, Mapping):
        return schema
    if schema.get("type") == "definitions":  # types that occur more than once
        definitions = [_typed(each) for each in schema["definitions"]]
        return {**schema, "schema": _model(schema["schema"], recorded), "definitions": definitions}
    if schema.get("type") != "model-fields":
        return {**schema, "schema": _model(schema["schema"], recorded)} if "schema" in schema else schema
    fields = {name: _typed(field) if name in recorded else field for name, field in schema["fields"].items()}
    return {**schema, "fields": fields}


def _typed(schema: Any) -> Any:
    """A schema without functions, but for those by which pydantic parses a type such as a path."""
    if isinstance(schema, list | tuple):
        return type(schema)(map(_typed, schema))
    if not isinstance(schema, dict):
        return schema
    if schema.get("type") in _FUNCTIONS and not _parses(schema["function"]["function"]):
        return _typed(schema.get("schema", {"type": "any"}))
    return {key: value if key == "serialization" else _typed(value) for key, value in schema.items()}


def _parses(function: Any) -> bool:
    while isinstance(function, partial):
        function = function.func
    return isinstance(function, type) or str(getattr(function, "__module__", "")).startswith("pydantic")
