"""The stubs of the clients, for type checkers and editors: what each method returns, blocking and to be awaited.

    python tests/client/stubs.py

writes them beside `weaver/training_client.py` and the others. Parameters are read from the code, where each method is
written once for both clients; what it returns is said here, once for both.
"""

import ast
import importlib
import inspect
import subprocess
import sys
from enum import Enum
from pathlib import Path

ROOT = Path(__file__).parents[2]
JSON = "dict[str, Any]"
HANDLE = "OperationHandle"
PAIRS = {
    "service_client": ("ServiceClient", "ServiceMethods", "ServiceLists"),
    "training_client": ("TrainingClient", "TrainingMethods"),
    "sampling_client": ("SamplingClient", "SamplingMethods"),
}
HOMES = {"ServiceLists": "service_lists"}
# Tokenizers are transformers', and requests of the user's own are answered with anything.
ANYTHING = {"tokenizer", "get_tokenizer", "http"}

# What a method gives, once it is done.
VALUES = {
    "connect": "None",
    "ensure_session": JSON,
    "create_model": "TrainingClient",
    "create_training_client": "TrainingClient",
    "create_sampling_client": "SamplingClient",
    "get_sampling_client": "SamplingClient",
    "terminate_model": JSON,
    "enqueue_operation": HANDLE,
    "download_weights": "Path",
    "list_supported_models": "list[str]",
    "list_supported_model_details": "list[SupportedModel]",
    "get_supported_model_config": f"{JSON} | None",
    "list_training_runs": JSON,
    "get_training_run": JSON,
    "list_models": JSON,
    "get_model": JSON,
    "list_organizations": f"list[{JSON}]",
    "list_projects": f"list[{JSON}]",
    "resolve_scope": JSON,
    "get_scheduling_options": JSON,
    "get_quota_balance": JSON,
    "list_quota_requests": JSON,
    "request_quota": JSON,
    "list_deployments": "list[Deployment]",
    "get_deployment": "Deployment",
    "delete_deployment": "Deployment",
    "forward": JSON,
    "forward_backward": JSON,
    "optim_step": JSON,
    "save_weights_for_sampler": "str",
    "save_weights_and_get_sampling_client": "SamplingClient",
    "save_state": "Checkpoint",
    "load_state": JSON,
    "load_state_with_optimizer": JSON,
    "list_checkpoints": "list[Checkpoint]",
    "set_checkpoint_ttl": JSON,
    "export_weights": "WeightsArtifact",
    "deploy_checkpoint": "Deployment",
    "log_metrics": "None",
    "resolve_sample_ref_lengths": "list[SampleRefLength]",
    "terminate": JSON,
    "sample": JSON,
    "compute_logprobs": "list[float | None]",
    "pause_generation": JSON,
    "continue_generation": JSON,
}
# What else it may give, by an argument: the parameter, and what is given for which annotations of it.
EITHER = f"WeightsArtifact | {HANDLE}"
OTHERWISE = {
    "list_supported_models": (
        "detailed",
        {"Literal[True]": "list[SupportedModel]", "bool": "list[str] | list[SupportedModel]"},
    ),
    "compute_logprobs": ("logprobs_params", {"LogprobsParams | None": f"list[float | None] | {JSON}"}),
    "export_weights": ("wait", {"Literal[False]": EITHER, "bool": EITHER}),  # one may be there already
}
NAMES = {
    "collections.abc": ("Coroutine", "Mapping", "Sequence"),
    "datetime": ("datetime",),
    "pathlib": ("Path",),
    "typing": ("Any", "Literal", "overload"),
    "weaver.client.training": ("Unset",),
    "weaver.operations": ("AsyncOperationHandle", "OperationHandle"),
    "weaver.sampling_client": ("AsyncSamplingClient", "SamplingClient"),
    "weaver.training_client": ("AsyncTrainingClient", "TrainingClient"),
    "weaver.types": (
        "AdamParams", "Checkpoint", "Datum", "Deployment", "LogprobsParams", "LoraConfig", "ModelInput", "PauseMode",
        "SampleRef", "SampleRefLength", "SamplingParams", "SupportedModel", "WeightsArtifact",
    ),
}  # fmt: skip


def methods(home, name):
    """The public functions of a class that say that they return Any, as they are written."""
    [found] = [
        node
        for node in ast.parse((ROOT / f"weaver/client/{home}.py").read_text()).body
        if isinstance(node, ast.ClassDef) and node.name == name
    ]
    for node in found.body:
        is_any = isinstance(node, ast.FunctionDef) and ast.unparse(node.returns) == "Any"
        if is_any and not node.name.startswith("_") and node.name not in ANYTHING:
            yield node


def parameters(function, client, parameter=None, annotation=None):
    """As they are written, but for one that is given another annotation."""
    known = inspect.signature(getattr(client, function.name)).parameters
    told, by_name = ["self"], function.args.kwonlyargs
    for one in (*function.args.args[1:], *by_name):
        told += ["*"] if by_name and one is by_name[0] else []
        is_it = one.arg == parameter
        text = annotation if is_it else ast.unparse(one.annotation).strip("'\"")
        default = known[one.arg].default
        if default is not inspect.Parameter.empty and not (is_it and text == f"Literal[{not default}]"):
            text += f" = {written(default)}"
        told.append(f"{one.arg}: {text}")
    if function.args.kwarg:
        told.append(f"**{function.args.kwarg.arg}: {ast.unparse(function.args.kwarg.annotation)}")
    return ", ".join(told)


def written(default):
    """A default as a stub may have it."""
    if isinstance(default, Enum):
        return f"{type(default).__name__}.{default.name}"
    return repr(default) if default is None or isinstance(default, bool | int | str) else "..."


def ways(function):
    """The parameter that decides what comes back, and what it is for which annotations; the default's comes first."""
    value = VALUES[function.name]
    names = [one.arg for one in function.args.kwonlyargs]
    if function.name in OTHERWISE:
        parameter, others = OTHERWISE[function.name]
    elif "wait" in names:
        parameter, others = "wait", {"Literal[False]": HANDLE, "bool": f"{value} | {HANDLE}"}
    else:
        return None, {None: value}
    first = {"wait": "Literal[True]", "detailed": "Literal[False]", "logprobs_params": "None"}[parameter]
    return parameter, {first: value, **others}


def of_async(value):
    """What the async client gives in its place."""
    for name in (HANDLE, "TrainingClient", "SamplingClient"):
        value = value.replace(name, f"Async{name}")
    return value


def stub(module):
    """The text of one, as ruff formats it."""
    name, *sources = PAIRS[module]
    runtime = importlib.import_module(f"weaver.{module}")
    lines = []
    for client in (f"Async{name}", name):
        lines += [f"class {client}(_clients.{client}):"]
        for source in sources:
            for function in methods(HOMES.get(source, module), source):
                parameter, found = ways(function)
                for annotation, value in found.items():
                    lines += ["    @overload"] if len(found) > 1 else []
                    given = parameters(function, getattr(runtime, client), parameter, annotation)
                    back = value if client == name else f"Coroutine[Any, Any, {of_async(value)}]"
                    lines += [f"    def {function.name}({given}) -> {back}: ..."]
    body = "\n".join(lines)
    words = {node.id for node in ast.walk(ast.parse(body)) if isinstance(node, ast.Name)}
    used = {home: [one for one in names if one in words] for home, names in NAMES.items() if home != f"weaver.{module}"}
    imports = [f"from {home} import {', '.join(names)}" for home, names in used.items() if names]
    head = f'"""Written by tests/client/stubs.py."""\n\nimport weaver.client.{module} as _clients\n'
    exported = f'__all__ = ["Async{name}", "{name}"]'
    text = "\n".join([head, *imports, "", exported, "", body, ""])
    return formatted(text, module)


def formatted(text, module):
    for command in (["check", "--select", "I", "--fix", "--quiet"], ["format"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--stdin-filename", f"weaver/{module}.pyi", "-"],
            input=text, cwd=ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
        text = done.stdout
    return text


def place(module):
    return ROOT / "weaver" / f"{module}.pyi"


if __name__ == "__main__":
    for module in PAIRS:
        place(module).write_text(stub(module))
