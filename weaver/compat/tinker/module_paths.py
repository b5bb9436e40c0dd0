"""The module paths of Tinker's SDK that users import from, led to where weaver keeps the same things.

`import weaver.compat.tinker.types.lora_config` and `from ... import LoraConfig` work like the SDK's own, and the class
is the one `tinker.LoraConfig` is. Not here: `tinker.resources`, `tinker.cli`, `tinker.proto` and other inner parts.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Final

_ROOT: Final = __name__.rpartition(".")[0]

# Where weaver keeps it: the SDK's modules of which it holds the names.
_TYPES: Final = {
    "billing": "billing_usage_request billing_usage_response",
    "checkpoints": "checkpoint checkpoints_list_response cursor training_run training_runs_response",
    "custom_loss": "create_custom_loss_request create_custom_loss_response custom_loss_graph custom_loss_input",
    "datum": "loss_fn_inputs loss_fn_output",
    "forward_backward": "forward_backward_input forward_backward_output forward_backward_request forward_request",
    "futures": "future_completion future_retrieve_request future_retrieve_response futures_retrieve_request "
    "futures_retrieve_response request_failed_response shared shared.untyped_api_future try_again_response",
    "model_input": "dmel_chunk encoded_text_chunk image_asset_pointer_chunk image_chunk model_input_chunk",
    "models": "create_model_request create_model_response get_info_request get_info_response lora_config "
    "unload_model_request unload_model_response",
    "names": "event_type loss_fn_type model_id request_error_category request_id sampling_client_kind severity "
    "stop_reason tensor_dtype",
    "optimizer": "optim_step_request optim_step_response",
    "sample_response": "prompt_alt_tokens sampled_sequence topk_logprobs",
    "sampling": "create_sampling_session_request create_sampling_session_response get_sampler_response "
    "join_sampling_session_request join_sampling_session_response sample_request sampling_params",
    "service": "audit_log_entry audit_log_response auth_token_response client_config_request client_config_response "
    "client_dynamic_config_response current_checkpoint_storage_usage_request "
    "current_checkpoint_storage_usage_response get_server_capabilities_response health_response whoami_response",
    "sessions": "create_session_request create_session_response get_session_response list_sessions_response "
    "search_owner session_heartbeat_request session_heartbeat_response session_search_cursor session_search_request "
    "session_search_response session_status session_status_query session_summary",
    "telemetry": "generic_event session_end_event session_start_event telemetry_batch telemetry_event "
    "telemetry_response telemetry_send_request unhandled_exception_event",
    "weights": "copy_weights_request copy_weights_response external_weights_urls_response load_weights_request "
    "load_weights_response save_weights_external_request save_weights_external_response "
    "save_weights_for_sampler_request save_weights_for_sampler_response save_weights_request save_weights_response "
    "weights_info_response",
}
_OTHERS: Final = {
    "_exceptions": "exceptions",
    "_types": "options",
    "_version": "version",
    "lib.experimental": "exceptions",
    "lib.retryable_exception": "exceptions",
}

# The SDK's module: weaver's. Both without the name of the package.
MODULE_PATHS: Final[dict[str, str]] = {
    **{f"types.{name}": f"types.{home}" for home, names in _TYPES.items() for name in names.split()},
    **_OTHERS,
}
_PACKAGES: Final = frozenset({"types.shared"})
_OF_A_MODULE: Final = frozenset(vars(ModuleType(""))) | {"__file__", "__cached__", "__builtins__", "__path__"}


class ModulePaths(MetaPathFinder, Loader):
    """Finds the SDK's modules, and fills each with the names of weaver's module in its place."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        name = fullname.removeprefix(f"{_ROOT}.")
        if name == fullname or name not in MODULE_PATHS:
            return None
        return ModuleSpec(fullname, self, is_package=name in _PACKAGES)

    def exec_module(self, module: ModuleType) -> None:
        home = MODULE_PATHS[module.__name__.removeprefix(f"{_ROOT}.")]
        names = vars(import_module(f"{_ROOT}.{home}"))
        vars(module).update({name: value for name, value in names.items() if name not in _OF_A_MODULE})


def serve_module_paths() -> None:
    """Makes the paths importable in this process; calling it again changes nothing."""
    if not any(isinstance(finder, ModulePaths) for finder in sys.meta_path):
        sys.meta_path.append(ModulePaths())
