"""The last file: every public method of the SDK's clients was called by the others, or stands here with its reason."""

from support import CALLED, CLIENTS, public_methods

TWIN = "its twin of the synchronous client sends the same request, and is called"
FULL_FT = "for models with training_mode 'full_ft', which this server refuses to make"
REASONS = {
    "AsyncServiceClient": {
        **dict.fromkeys((
            "create_training_client", "datasets", "delete_deployment", "download_weights",
            "get_deployment", "get_scheduling_options", "get_supported_model_config", "list_quota_requests",
            "list_supported_model_details", "request_quota",
        ), TWIN),
    },
    "AsyncTrainingClient": dict.fromkeys((
        "deploy_checkpoint", "export_weights", "forward", "forward_backward_custom", "get_tokenizer",
        "list_checkpoints", "load_state", "load_state_with_optimizer", "log_metrics", "resolve_sample_ref_lengths",
        "save_state", "save_weights_for_sampler", "set_checkpoint_ttl", "terminate", "tokenizer", "training_run_id",
    ), TWIN),
    "AsyncSamplingClient": dict.fromkeys(("continue_generation", "pause_generation", "paused"), FULL_FT),
    "AsyncOperationHandle": dict.fromkeys(("error", "pending_info", "refresh", "wait_all"), TWIN),
    "AsyncManagedDatasetsClient": dict.fromkeys(("get", "list"), TWIN),
}  # fmt: skip


def test_every_public_method_is_called_or_listed_with_its_reason():
    missing = {
        client.__name__: sorted(
            name
            for name in public_methods(client)
            if (client.__name__, name) not in CALLED and name not in REASONS.get(client.__name__, {})
        )
        for client in CLIENTS
    }
    assert not {name: methods for name, methods in missing.items() if methods}


def test_a_reason_stands_for_a_method_that_is_there_and_is_not_called():
    names = {client.__name__: client for client in CLIENTS}
    for name, methods in REASONS.items():
        assert set(methods) <= public_methods(names[name]), name
        assert not [method for method in methods if (name, method) in CALLED], name
