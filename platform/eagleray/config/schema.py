"""JSON schemas of run and sweep files.

For editors, with the settings that each method, encoder or source declares, those in the working directory too.
"""

from collections.abc import Iterable
from itertools import chain
from typing import Any

from pydantic import BaseModel

from eagleray.config.registry import Kind, declared, found_here
from eagleray.config.run import Run, run_keys
from eagleray.config.sections import (
    Chosen,
    DataChoice,
    EncoderChoice,
    MethodChoice,
    Settled,
    Task,
    evaluate_with,
)
from eagleray.config.sweep import Sweep
from eagleray.config.timm_names import timm_family, timm_names
from eagleray.contracts.ranges import KINDS

Schema = dict[str, Any]

_SECTIONS: tuple[type[Chosen], ...] = (MethodChoice, EncoderChoice, DataChoice, Task)
_NAMELESS: dict[Kind, tuple[str, ...]] = {  # the defaults, whose settings need no name
    "method": ("simclr",),
    "encoder": ("convnet", "vit_tiny"),
    "data": ("digits",),
}
_DRAFT = "https://json-schema.org/draft/2020-12/schema"
_NUMBERS: Schema = {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2}


def run_schema() -> Schema:
    """Return the schema of a run file."""
    schema = Run.model_json_schema()
    definitions: Schema = schema["$defs"]
    for section in _SECTIONS:
        definitions[section.__name__] = _chosen(section)
    definitions["Evaluate"] = _evaluate()
    definitions["Recipe"]["description"] = "How it is trained; missing keys are those of the method's recipe."
    del schema["required"]  # every key has a default, though some defaults follow from the method
    return {"$schema": _DRAFT, **schema}


def sweep_schema() -> Schema:
    """Return the schema of a sweep file."""
    run = run_schema()
    definitions = run.pop("$defs")
    schema = Sweep.model_json_schema()
    schema["properties"]["run"] = {
        "$ref": "#/$defs/Run",
        "description": "a run; missing keys have their defaults",
    }
    schema["properties"]["vary"] = _vary(schema["properties"]["vary"]["description"])
    del run["$schema"], run["properties"]["notify"]  # the sweep has its own
    return {"$schema": _DRAFT, **schema, "$defs": {**definitions, "Run": run}}


def _evaluate() -> Schema:
    """Return the section with all evaluators.

    Modules in `also` allow sections of other names.
    """
    schema = evaluate_with(()).model_json_schema()
    settings: Schema = schema.pop("$defs", {})
    for name, field in schema["properties"].items():
        schema["properties"][name] = settings.get(field.pop("$ref", "").rpartition("/")[2], field)
    own = {"required": ["also"], "properties": {"also": {"minItems": 1}}}
    shipped = {"propertyNames": {"enum": list(schema["properties"])}}
    return {**schema, "additionalProperties": {"type": "object"}, "if": own, "else": shipped}


def _chosen(section: type[Chosen]) -> Schema:
    """Return a choice by name or with settings.

    A bare name, the default's settings, or a name with the settings that its file declares.
    """
    shared = [section.Settings] if issubclass(section, Settled) else []
    known, here = declared(section.kind), found_here(section.kind)
    names = {name: [name] for name in {**known, **here}}
    for name in timm_names() if section.kind == "encoder" else ():
        if name not in known:
            names[str(timm_family(name))].append(name)
    objects = [
        _settings([one.Config, *shared], {"name": {"enum": names[name]}}, description=one.summary)
        for name, one in {**known, **here}.items()
    ]
    default = [_settings([*(known[name].Config for name in _NAMELESS[section.kind]), *shared], {})]
    own: Schema = {"type": "string", "pattern": r"\.", "not": {"enum": sorted(here)}}
    own["description"] = "a file of your own, such as ./fancy.py, or a module, such as my_lab.fancy"
    return {
        "description": (section.__doc__ or "").strip(),
        "oneOf": [
            {"enum": sorted(chain.from_iterable(names.values()))},
            own,
            *(default if section is not Task else ()),  # which has none
            *objects,
            {"type": "object", "properties": {"name": own}, "required": ["name"]},
        ],
    }


def _settings(models: Iterable[type[BaseModel]], name: Schema, description: str = "") -> Schema:
    properties, required = dict(name), list(name)
    for model in models:
        schema = model.model_json_schema()
        properties |= schema.get("properties", {})
        required += schema.get("required", [])
    described = {"description": description} if description else {}
    needed = {"required": required} if required else {}
    return {"type": "object", **described, "properties": properties, "additionalProperties": False, **needed}


def _vary(description: str) -> Schema:
    values: Schema = {"type": "array", "minItems": 1}
    ranges = [
        {"type": "object", "properties": {kind: _NUMBERS}, "required": [kind], "additionalProperties": False}
        for kind in KINDS
    ]
    varied = {"oneOf": [values, {"const": "declared"}, *ranges]}
    variants = {**values, "items": {"$ref": "#/$defs/Run"}, "description": "whole variants of the run"}
    methods = [*declared("method"), *found_here("method")]
    fields = {key: field.description for name in methods for key, field in run_keys({"method": name}).items()}
    return {
        "type": "object",
        "description": description,
        "minProperties": 1,
        "properties": {
            "run": variants,
            **{key: {**varied, "description": text or key} for key, text in fields.items()},
            "notify": False,
        },
        "additionalProperties": {"anyOf": [varied, {"type": "object"}]},
    }
