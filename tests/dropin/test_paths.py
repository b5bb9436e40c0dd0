"""The module paths that users import from lead to the same objects as the short names."""

import importlib
import pickle
import subprocess
import sys

import pytest
import tinker as theirs

import weaver.compat.tinker as ours
from weaver.compat.tinker.module_paths import MODULE_PATHS

PATHS = {
    "_exceptions": ["BadRequestError", "TinkerError", "RequestFailedError"],
    "_types": ["RequestOptions", "Timeout"],
    "_version": ["__title__", "__version__"],
    "auth": [],
    "lib.experimental": ["ExperimentalWarning"],
    "lib.public_interfaces": ["APIFuture", "RestClient", "ServiceClient", "TrainingClient", "SamplingClient"],
    "lib.public_interfaces.admin_client": ["AdminClient"],
    "lib.public_interfaces.api_future": ["APIFuture"],
    "lib.public_interfaces.backcompat_sampling_client_future": ["BackcompatSamplingClientFuture"],
    "lib.public_interfaces.backcompat_training_client_future": ["BackcompatTrainingClientFuture"],
    "lib.public_interfaces.custom_loss": ["LossHandle", "PerDatumLossFn"],
    "lib.public_interfaces.rest_client": ["RestClient"],
    "lib.public_interfaces.sampling_client": ["SamplingClient"],
    "lib.public_interfaces.service_client": ["ServiceClient"],
    "lib.public_interfaces.training_client": ["TrainingClient"],
    "types.tensor_data": ["TensorData"],
    "types.lora_config": ["LoraConfig"],
}
ELSEWHERE = {
    "lib.public_interfaces.api_future": ["AwaitableConcurrentFuture"],
    "lib.retry_handler": ["RetryConfig"],
    "lib.retryable_exception": ["RetryableException"],
    "types.generic_event": ["GenericEvent"],
    "types.optimizer": ["OptimizerConfigBase", "OptimParamsBase"],
    "types.topk_logprobs": ["TopkLogprobs", "topk_to_lists", "MASK_LOGPROB"],
    "types.try_again_response": ["TryAgainResponse"],
}


def both(path):
    return importlib.import_module(f"weaver.compat.tinker.{path}"), importlib.import_module(f"tinker.{path}")


@pytest.mark.parametrize("path", PATHS)
def test_a_path_gives_what_the_short_name_gives(path):
    our_module, their_module = both(path)
    for name in PATHS[path]:
        assert getattr(our_module, name) is getattr(ours, name)
        assert hasattr(their_module, name)


@pytest.mark.parametrize("path", ELSEWHERE)
def test_a_path_gives_what_has_no_short_name(path):
    our_module, their_module = both(path)
    assert [name for name in ELSEWHERE[path] if not hasattr(our_module, name)] == []
    assert [name for name in ELSEWHERE[path] if not hasattr(their_module, name)] == []


def test_every_path_exists_in_the_sdk_and_leads_somewhere():
    for path in MODULE_PATHS:
        our_module, their_module = both(path)
        assert our_module.__name__ == f"weaver.compat.tinker.{path}"
        assert their_module.__name__ == f"tinker.{path}"


def test_a_path_can_be_imported_first_and_by_every_form_of_import():
    code = (
        "import weaver.compat.tinker.types.shared.untyped_api_future as path\n"
        "from weaver.compat.tinker.types import lora_config\n"
        "from weaver.compat.tinker.types.sampling_params import *\n"
        "import weaver.compat.tinker as tinker\n"
        "assert path.UntypedAPIFuture is tinker.types.UntypedAPIFuture\n"
        "assert lora_config.LoraConfig is tinker.LoraConfig\n"
        "assert SamplingParams is tinker.SamplingParams\n"
        "assert tinker.types.lora_config is lora_config\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_path_nobody_has_is_a_missing_module():
    with pytest.raises(ModuleNotFoundError, match=r"weaver\.compat\.tinker\.types\.lora"):
        importlib.import_module("weaver.compat.tinker.types.lora")


def test_a_class_is_pickled_by_a_path_that_needs_no_other_import():
    sent = pickle.dumps(ours.LoraConfig(rank=4))
    code = f"import pickle\nprint(pickle.loads({sent!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == str(theirs.LoraConfig(rank=4))
