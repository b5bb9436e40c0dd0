"""Every public name of the installed SDK is ours too, and looks the same: kind, signature, fields, members."""

import dataclasses
import enum
import importlib
import inspect
import pkgutil
import types as python_types
import typing
from collections.abc import Mapping
from functools import cached_property

import pydantic
import pytest
import tinker as theirs
import tinker.types as their_types
import torch
from typing_extensions import is_typeddict

import weaver.compat.tinker as ours
import weaver.compat.tinker.types as our_types

OURS, THEIRS = "weaver", "tinker"
# What annotations name that is imported for type checkers only.
NAMES = {"torch": torch, "Mapping": Mapping}
PROTOCOLS = ("__enter__", "__exit__", "__aenter__", "__aexit__", "__await__", "__call__", "__iter__", "__len__")
# What may differ, with the reason.
REASONS = {}


def public(module):
    """The names of a module without its submodules."""
    return {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and not isinstance(value, python_types.ModuleType) and name != "annotations"
    }


def type_modules():
    """The SDK's modules below `tinker.types` that are not private."""
    return [
        found.name
        for found in pkgutil.walk_packages(their_types.__path__, "types.")
        if "._" not in found.name and not found.name.endswith("_test")
    ]


def test_it_is_the_version_of_the_installed_sdk():
    assert (ours.__version__, ours.__title__) == (theirs.__version__, theirs.__title__)


def test_all_names_the_same_things():
    assert sorted(ours.__all__) == sorted(theirs.__all__)
    assert set(theirs.__all__) <= set(dir(ours))


def test_types_has_every_name_of_the_sdks_types():
    assert public(their_types) - public(our_types) == set()
    assert set(our_types.__all__) == public(their_types)


@pytest.mark.parametrize("name", [name for name in theirs.__all__ if name not in ("types", *public(their_types))])
def test_a_name_of_the_package_looks_the_same(name):
    compare(name, getattr(ours, name), getattr(theirs, name))


@pytest.mark.parametrize("name", sorted(public(their_types)))
def test_a_type_looks_the_same(name):
    compare(name, getattr(our_types, name), getattr(their_types, name))


def compare(name, our_value, their_value):
    mine, yours = describe(our_value), describe(their_value)
    for aspect, reason in REASONS.get(name, {}).items():
        assert mine.pop(aspect) != yours.pop(aspect), f"{name}.{aspect} is the same now; drop the reason {reason!r}"
    assert mine == yours


@pytest.mark.parametrize("path", type_modules())
def test_the_sdks_module_of_a_type_gives_the_same_object(path):
    their_module = importlib.import_module(f"tinker.{path}")
    our_module = importlib.import_module(f"weaver.compat.tinker.{path}")
    exported = set(getattr(their_module, "__all__", ())) or defined_in(their_module)
    for name in exported:
        found = getattr(our_module, name)
        assert found is getattr(our_types, name, found)


def defined_in(module):
    return {
        name for name, value in vars(module).items() if inspect.isclass(value) and value.__module__ == module.__name__
    }


def describe(value):
    """A dictionary of plain values that is equal for things users cannot tell apart."""
    if inspect.ismodule(value):
        return {"kind": "module", "names": sorted(getattr(value, "__all__", ()))}
    if not inspect.isclass(value) or is_typeddict(value) or value.__module__ == "builtins":
        return describe_alias(value)
    description = {"signature": signature(value), "members": members(value), "mro": ancestry(value)}
    if issubclass(value, enum.Enum):
        return {"kind": "enum", "members": [(member.name, member.value) for member in value], "mro": ancestry(value)}
    if issubclass(value, pydantic.BaseModel):
        return {"kind": "pydantic", **description, **describe_pydantic(value)}
    if dataclasses.is_dataclass(value):
        return {"kind": "dataclass", **description, **describe_dataclass(value)}
    return {"kind": "exception" if issubclass(value, BaseException) else "class", **description}


def describe_alias(value):
    if is_typeddict(value):
        return {
            "kind": "typed dict",
            "keys": sorted(value.__annotations__),
            "required": sorted(value.__required_keys__),
        }
    if isinstance(value, str):
        return {"kind": "text", "value": value}
    return {"kind": "alias", "of": canonical(value)}


def describe_pydantic(model):
    settings = {key: model.model_config.get(key) for key in ("extra", "frozen", "allow_inf_nan")}
    schemas = {
        mode: without_descriptions(model.model_json_schema(mode=mode)) for mode in ("validation", "serialization")
    }
    fields = [
        (name, field.is_required(), canonical(field.annotation), repr(field.get_default(call_default_factory=True)))
        for name, field in model.model_fields.items()
    ]
    return {"settings": settings, "fields": fields, "schemas": schemas}


def describe_dataclass(cls):
    params = cls.__dataclass_params__
    # The SDK renames the module of its exported classes; what built them remembers the real one.
    hints = typing.get_type_hints(cls, getattr(cls.__init__, "__globals__", None), NAMES)
    return {
        "settings": (params.init, params.eq, params.order, params.frozen, params.repr, "__slots__" in vars(cls)),
        "fields": [
            (field.name, canonical(hints[field.name]), default_of(field), field.kw_only, field.repr, field.compare)
            for field in dataclasses.fields(cls)
        ],
    }


def default_of(field):
    if field.default is not dataclasses.MISSING:
        return repr(field.default)
    return "required" if field.default_factory is dataclasses.MISSING else repr(field.default_factory())


def without_descriptions(schema):
    if isinstance(schema, dict):
        kept = {key: without_descriptions(value) for key, value in schema.items() if not is_description(key, value)}
        # Our tensor on the wire has a name of its own, and a discriminator is only a hint beside the `const` it names.
        return {"WireTensor" if key == "TensorData" else key: value for key, value in kept.items()}
    if isinstance(schema, list):
        return [without_descriptions(part) for part in schema]
    return schema.replace("TensorData", "WireTensor") if isinstance(schema, str) else schema


def is_description(key, value):
    return key == "description" and isinstance(value, str)


def ancestry(cls):
    """The names of the public classes above it."""
    return [base.__name__ for base in cls.__mro__[1:] if is_public_base(base)]


def is_public_base(base):
    named = base.__name__ in (*theirs.__all__, *vars(their_types)) or base.__module__ == "builtins"
    return named and base is not object and not issubclass(base, pydantic.BaseModel)


def members(cls):
    """Public attributes and protocol methods, from the class and those above it that are not the standard library's."""
    found = {}
    for base in reversed(cls.__mro__):
        if base.__module__.split(".")[0] in (OURS, THEIRS):
            for name, member in vars(base).items():
                if is_visible(name, member):
                    found[name] = describe_member(member)
    return found


def is_visible(name, member):
    if name in PROTOCOLS:
        return True
    hidden = name.startswith("_") or name.startswith("model_config")
    return not hidden and (
        callable(member) or isinstance(member, property | cached_property | classmethod | staticmethod)
    )


def describe_member(member):
    if isinstance(member, property | cached_property):
        return "property"
    wrapped = type(member).__name__ if isinstance(member, classmethod | staticmethod) else "method"
    function = member.__func__ if wrapped != "method" else member
    if inspect.isclass(function):
        return "class"
    return (wrapped, "async" if inspect.iscoroutinefunction(function) else "plain", signature(function))


def signature(function):
    if inspect.isclass(function) and issubclass(function, BaseException) and is_builtin_init(function):
        return "any exception's"
    parameters = inspect.signature(function).parameters.values()
    return [
        (parameter.name, str(parameter.kind), "required" if parameter.default is parameter.empty else plain(parameter))
        for parameter in parameters
    ]


def is_builtin_init(cls):
    return next(base for base in cls.__mro__ if "__init__" in vars(base)).__module__ == "builtins"


def plain(parameter):
    default = parameter.default
    return "a factory's" if "factory" in repr(default) else repr(default)


def parts_of(described):
    """The parts of a union within a union, which is one union."""
    return described[1:] if isinstance(described, tuple) and described[0] == "union" else [repr(described)]


def canonical(annotation):
    """An annotation without the ways there are to spell it."""
    if isinstance(annotation, str | typing.ForwardRef):
        annotation = eval(getattr(annotation, "__forward_arg__", annotation), NAMES)
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is None or annotation is python_types.NoneType:
        return "None"
    if origin is typing.Annotated:
        return canonical(arguments[0])
    if origin is typing.Literal:
        return ("literal", *sorted(map(repr, arguments)))
    if origin in (typing.Union, python_types.UnionType):
        return ("union", *sorted({part for argument in arguments for part in parts_of(canonical(argument))}))
    if origin is not None:
        name = origin.__name__
        return name if name == "ndarray" else (name, *[canonical(argument) for argument in arguments if argument != ()])
    if isinstance(annotation, list):
        return [canonical(part) for part in annotation]
    name = getattr(annotation, "__name__", repr(annotation))
    return "TensorData" if name == "WireTensor" else name
