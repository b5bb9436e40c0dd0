"""What of `weaver` a user can name: printed as JSON by whichever package of that name the interpreter has.

    python tests/client/surface.py > tests/client/nex_weaver_1_19_2.json

Run in an environment with nex-weaver 1.19.2, this made the record beside it: names, parameters, fields, defaults.
"""

import dataclasses
import enum
import importlib
import inspect
import json

MODULES = (
    "weaver",
    "weaver.types",
    "weaver.types.tensor",
    "weaver.training_client",
    "weaver.sampling_client",
    "weaver.operations",
    "weaver.training_pipeline",
)


def plain(value):
    """A default, without the addresses and private names in it."""
    if isinstance(value, enum.Enum):
        return value.name
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return f"{type(value).__name__}({dataclasses.asdict(value)})"
    return repr(value)


def parameters(function):
    found = inspect.signature(function).parameters.values()
    return [
        [one.name, one.kind.name, None if one.default is inspect.Parameter.empty else plain(one.default)]
        for one in found
        if one.name not in ("self", "cls")
    ]


def fields(cls):
    found = {}
    for one in dataclasses.fields(cls):
        made = one.default_factory is not dataclasses.MISSING
        default = one.default_factory() if made else one.default
        found[one.name] = None if default is dataclasses.MISSING else plain(default)
    return {name: default for name, default in found.items() if not name.startswith("_")}


def members(cls):
    found = {}
    for name in sorted({name for base in cls.__mro__ if is_ours(base) for name in vars(base)}):
        if name.startswith("_"):
            continue
        value = inspect.getattr_static(cls, name)
        if isinstance(value, property) or type(value).__name__ == "cached_property":
            found[name] = {"kind": "property"}
        elif isinstance(value, (classmethod, staticmethod)):
            found[name] = {"kind": type(value).__name__, "parameters": parameters(getattr(cls, name))}
        elif inspect.isfunction(value):
            plain_function = inspect.unwrap(value)
            kind = "coroutine" if inspect.iscoroutinefunction(plain_function) else "method"
            found[name] = {"kind": kind, "parameters": parameters(value)}
    return found


def is_ours(cls):
    return cls.__module__.partition(".")[0] == "weaver"


def described(value):
    if isinstance(value, type) and issubclass(value, enum.Enum):
        return {"kind": "enum", "values": {one.name: one.value for one in value}}
    if isinstance(value, type):
        found = {"kind": "class", "members": members(value)}
        if issubclass(value, dict):
            return found | {"keys": sorted(value.__annotations__)}
        found["builtins"] = [base.__name__ for base in value.__mro__ if base.__module__ == "builtins"]
        if dataclasses.is_dataclass(value):
            found["fields"] = fields(value)
            found["frozen"] = value.__dataclass_params__.frozen
        found["parameters"] = parameters(value)
        return found
    if inspect.isfunction(value):
        return {"kind": "function", "parameters": parameters(value)}
    if inspect.ismodule(value):
        return {"kind": "module"}
    return {"kind": "value", "value": value if isinstance(value, (int, str)) else repr(value)}


def names(module):
    if hasattr(module, "__all__"):
        return sorted(module.__all__)
    own = (name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__)
    return sorted(name for name in own if not name.startswith("_"))


def surface():
    found = {}
    for path in MODULES:
        module = importlib.import_module(path)
        found[path] = {name: described(getattr(module, name)) for name in names(module) if name != "__version__"}
    return found


def lines(found):
    """JSON with a line for each name."""
    modules = []
    for path, known in found.items():
        rows = ",\n".join(f"  {json.dumps(name)}: {json.dumps(one, sort_keys=True)}" for name, one in known.items())
        modules.append(f" {json.dumps(path)}: {{\n{rows}\n }}")
    return "{\n" + ",\n".join(modules) + "\n}"


if __name__ == "__main__":
    print(lines(surface()))
