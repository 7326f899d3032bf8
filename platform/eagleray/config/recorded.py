"""Reading settings that were validated before.

Types are parsed, but a Config's own validators do not run.

A Config may contain `Annotated[float, AfterValidator(lambda v: v / 100)]`, typed in percent. A run file then records
the result, and reading the file must not divide a second time.
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
        recorded: the settings that were validated before; None: all.

    Raises:
        ValidationError: the model does not accept a value.
    """
    known = frozenset(values if recorded is None else recorded) & set(model.model_fields)
    return _validator(model, known).validate_python(dict(values)) if known else model.model_validate(values)


def lost(config: BaseModel) -> list[str]:
    """Return the settings that recording and reading changes."""
    try:
        again = settings_of(type(config), config.model_dump(mode="json", warnings="error"))
    except ValidationError as error:
        return [str(each["loc"][0]) if each["loc"] else each["msg"] for each in error.errors()]
    except PydanticSerializationError as error:
        return [str(error)]
    return [name for name in type(config).model_fields if getattr(again, name) != getattr(config, name)]


@cache
def _validator(model: type[BaseModel], recorded: frozenset[str]) -> SchemaValidator:
    return SchemaValidator(_whole(model.__pydantic_core_schema__, recorded))


def _whole(schema: Any, recorded: frozenset[str]) -> Any:
    """Return a Config's schema without functions of recorded fields.

    Functions of the whole Config stay.
    """
    if schema["type"] == "model-fields":
        fields = {name: _parsing(field) if name in recorded else field for name, field in schema["fields"].items()}
        return {**schema, "fields": fields}
    inner = {**schema, "schema": _whole(schema["schema"], recorded)}
    if schema["type"] == "definitions":  # types that occur more than once
        inner["definitions"] = [_parsing(each) for each in schema["definitions"]]
    return _instantiated(inner) if schema["type"] == "model" else inner


def _parsing(schema: Any) -> Any:
    """Return a schema without functions, except type parsers.

    pydantic needs these to parse a type such as a path.
    """
    if isinstance(schema, list | tuple):
        return type(schema)(map(_parsing, schema))
    if not isinstance(schema, dict):
        return schema
    if schema.get("type") in _FUNCTIONS and not _is_parser(schema["function"]["function"]):
        return _parsing(schema.get("schema", {"type": "any"}))
    parsing = {key: value if key == "serialization" else _parsing(value) for key, value in schema.items()}
    return _instantiated(parsing) if schema.get("type") == "model" else parsing


def _instantiated(schema: Any) -> Any:
    """Rewrite a model's schema so that pydantic uses it.

    It would replace a `model` by the validator that its class already has.
    """
    return {
        "type": "function-after",
        "function": {"type": "no-info", "function": partial(_instance, schema["cls"])},
        "schema": _strict(schema["schema"], schema.get("config", {}).get("extra_fields_behavior", "ignore")),
        **({"ref": schema["ref"]} if "ref" in schema else {}),
    }


def _strict(schema: Any, extra: str) -> Any:
    """Return a model's fields and rule for unknown keys."""
    if schema["type"] == "model-fields":
        return {**schema, "extra_behavior": extra}
    return {**schema, "schema": _strict(schema["schema"], extra)}


def _instance(model: type[BaseModel], parts: tuple[dict[str, Any], dict[str, Any] | None, set[str]]) -> BaseModel:
    values, extra, keys = parts
    return model.model_construct(keys, **values, **(extra or {}))


def _is_parser(function: Any) -> bool:
    while isinstance(function, partial):
        function = function.func
    is_marked = isinstance(function, type) or getattr(function, "parses", False)
    return is_marked or str(getattr(function, "__module__", "")).startswith("pydantic")
