"""Every public method of the installed SDK's clients, and the test that uses it on this server."""

import ast
import asyncio
import base64
import json
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import tinker
from tinker.lib.api_future_impl import QueueState
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

LLAMA = "tiny/llama"
HERE = Path(__file__).parent
PROMPT = tinker.ModelInput.from_ints([5, 6, 7, 8])
ONE_TOKEN = tinker.SamplingParams(max_tokens=1)
CLIENTS = [
    tinker.RestClient, tinker.AdminClient, tinker.ServiceClient, tinker.TrainingClient, tinker.SamplingClient,
]  # fmt: skip

REST = {
    "test_rest.py::test_a_training_run_says_what_it_is_and_what_it_has_saved": [
        "get_training_run", "get_training_run_by_tinker_path",
    ],
    "test_rest.py::test_runs_are_listed_newest_first_in_pages_and_by_project": ["list_training_runs"],
    "test_rest.py::test_checkpoints_are_listed_newest_first_of_one_run_and_of_all": [
        "list_checkpoints", "list_user_checkpoints",
    ],
    "test_rest.py::test_weights_info_tells_what_a_checkpoint_was_trained_with": ["get_weights_info_by_tinker_path"],
    "test_rest.py::test_publishing_marks_a_checkpoint_and_can_be_repeated_and_undone": [
        "publish_checkpoint_from_tinker_path", "unpublish_checkpoint_from_tinker_path",
    ],
    "test_rest.py::test_a_lifetime_is_counted_from_when_it_is_set_and_can_be_lifted": [
        "set_checkpoint_ttl_from_tinker_path",
    ],
    "test_rest.py::test_a_deleted_checkpoint_is_gone_with_its_files_and_its_name_is_free": [
        "delete_checkpoint", "delete_checkpoint_from_tinker_path",
    ],
    "test_rest.py::test_a_copy_is_a_checkpoint_of_its_own_that_outlives_its_source": ["copy_weights"],
    "test_sessions.py::test_a_session_lists_its_runs_its_samplers_and_what_it_was_called": [
        "get_session", "get_sampler",
    ],
    "test_sessions.py::test_sessions_are_listed_newest_first": ["list_sessions"],
    "test_sessions.py::test_a_session_moves_between_projects_with_its_runs": ["assign_session_project"],
    "test_sessions.py::test_a_search_finds_what_holds_of_all_that_it_says": ["search_sessions"],
    "test_external_weights.py::test_an_export_is_what_peft_reads_and_holds_the_weights_of_its_moment": [
        "get_external_weights_urls",
    ],
    "test_admin.py::test_a_trace_has_every_operation_with_its_number_and_its_time": ["export_session_trace"],
    "test_public_methods.py::test_a_user_with_a_token_learns_who_they_are": ["whoami"],
    "test_public_methods.py::test_what_the_server_can_do_is_told_to_every_client": ["get_server_capabilities"],
    "test_public_methods.py::test_the_rest_client_still_has_the_methods_of_the_admin_client": [
        "get_audit_log", "get_billing_usage", "get_current_checkpoint_storage_usage",
    ],
    "test_public_methods.py::test_the_sdks_own_plumbing_stands": ["get_telemetry"],
}  # fmt: skip
ADMIN = {
    "test_admin.py::test_every_token_that_was_trained_on_drawn_or_read_is_counted_once": ["get_billing_usage"],
    "test_admin.py::test_what_checkpoints_take_is_told_for_each_project": ["get_current_checkpoint_storage_usage"],
    "test_admin.py::test_the_audit_log_has_what_was_done_to_checkpoints_and_projects_day_by_day": ["get_audit_log"],
    "test_public_methods.py::test_the_sdks_own_plumbing_stands": ["get_telemetry"],
}
SERVICE = {
    "test_rest.py::test_a_service_client_copies_a_snapshot_into_its_own_project_and_samples_from_it": [
        "copy_weights", "create_sampling_client",
    ],
    "test_sessions.py::test_a_search_tells_how_each_session_ended_and_what_it_keeps": ["close"],
    "test_custom_loss.py::test_the_server_computes_what_the_client_would": ["create_custom_loss"],
    "test_learning.py::test_a_supervised_loop_learns_to_count": ["create_lora_training_client"],
    "test_state.py::test_the_optimizers_state_makes_a_difference": [
        "create_training_client_from_state", "create_training_client_from_state_with_optimizer",
    ],
    "test_public_methods.py::test_what_the_server_can_do_is_told_to_every_client": [
        "create_rest_client", "get_server_capabilities",
    ],
    "test_public_methods.py::test_the_sdks_own_plumbing_stands": ["get_telemetry", "holder"],
}  # fmt: skip
TRAINING = {
    "test_gradients.py::test_forward_alone_accumulates_nothing_and_returns_the_same_logprobs": [
        "forward", "forward_backward",
    ],
    "test_gradients.py::test_a_custom_loss_agrees": ["forward_backward_custom"],
    "test_state.py::test_every_adam_parameter_is_honoured_and_weights_alone_begin_a_new_optimizer": [
        "optim_step", "save_state",
    ],
    "test_state.py::test_without_its_optimizer_a_loaded_state_begins_a_new_one": ["load_state"],
    "test_state.py::test_with_its_optimizer_a_state_goes_on_like_a_client_that_never_stopped": [
        "load_state_with_optimizer",
    ],
    "test_state.py::test_a_resumed_model_has_the_settings_of_the_first": ["get_info"],
    "test_learning.py::test_a_snapshot_never_changes": [
        "create_sampling_client", "save_weights_for_sampler", "save_weights_and_get_sampling_client",
    ],
    "test_external_weights.py::test_an_export_is_what_peft_reads_and_holds_the_weights_of_its_moment": [
        "save_weights_external",
    ],
    "test_public_methods.py::test_both_clients_load_the_models_tokenizer": ["get_tokenizer"],
    "test_public_methods.py::test_the_sdks_own_plumbing_stands": ["get_telemetry"],
}  # fmt: skip
SAMPLING = {
    "test_learning.py::test_scored_logprobs_are_the_trainers": ["compute_logprobs"],
    "test_learning.py::test_sampled_logprobs_are_the_trainers": ["sample"],
    "test_sessions.py::test_a_session_lists_its_runs_its_samplers_and_what_it_was_called": ["get_base_model"],
    "test_many_samples.py::test_clones_get_numbers_of_their_own_from_the_server": [
        "get_sampler_handle", "from_sampler_handle",
    ],
    "test_public_methods.py::test_both_clients_load_the_models_tokenizer": ["get_tokenizer"],
    "test_public_methods.py::test_the_sdks_own_plumbing_stands": ["create", "get_telemetry", "on_queue_state_change"],
}  # fmt: skip
EXERCISED = dict(zip(CLIENTS, (REST, ADMIN, SERVICE, TRAINING, SAMPLING)))

VENDORS_CONSOLE = "an address of the vendor's own web site, which is written into the SDK"
REASONS = {
    tinker.ServiceClient: {"get_console_url": VENDORS_CONSOLE},
    tinker.TrainingClient: {"get_console_url": VENDORS_CONSOLE},
}


def public(client):
    return {name for name in dir(client) if not name.startswith("_")}


def exercised(client):
    return {name for names in EXERCISED[client].values() for name in names}


def functions_of(file):
    return {node.name for node in ast.parse((HERE / file).read_text()).body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("client", CLIENTS)
def test_every_public_method_is_exercised_or_has_a_reason(client):
    twins = {f"{name}_async" for name in exercised(client)} & public(client)
    assert exercised(client) | twins | REASONS.get(client, {}).keys() == public(client)


@pytest.mark.parametrize("client", CLIENTS)
def test_every_test_in_the_table_is_there_and_its_file_uses_the_method(client):
    for place, names in EXERCISED[client].items():
        file, _, function = place.partition("::")
        assert function in functions_of(file), place
        for name in names:
            assert f".{name}" in (HERE / file).read_text(), (place, name)


# What no other file has a place for


@pytest.fixture
def with_tokenizer(folders, tmp_path):
    """The tiny Llama with a tokenizer beside it."""
    shutil.copytree(folders[LLAMA], tmp_path / "model")
    words = {f"w{number}": number for number in range(97)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_both_clients_load_the_models_tokenizer(start_server, with_tokenizer):
    """A sampler's is found by the base model's name alone, which is therefore one that finds it here."""
    name = str(with_tokenizer)
    with start_server({name: with_tokenizer}).client() as client:
        run = client.create_lora_training_client(name, rank=4).result()
        assert run.get_tokenizer().encode("w7") == [7]
        assert run.save_weights_and_get_sampling_client().result().get_tokenizer().encode("w9") == [9]


def test_what_the_server_can_do_is_told_to_every_client(server, service_client):
    for client in (server.rest(), service_client.create_rest_client()):
        (llama, qwen) = client.get_server_capabilities().result().supported_models
        assert (llama.model_name, llama.max_context_length, llama.trainable, llama.sampleable) == (
            LLAMA, 256, True, True,
        )  # fmt: skip
        assert qwen.model_name == "tiny/qwen3"
    assert len(service_client.get_server_capabilities().supported_models) == 2


def token(**claims):
    """An unsigned JWT: this server lets every key in, and the SDK reads the claims itself."""
    parts = ({"alg": "none"}, {"iss": "passport-home", "exp": 4_000_000_000} | claims, {})
    return ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts)


def test_a_user_with_a_token_learns_who_they_are(server):
    key = token(sub="ada", org_id="home", email="ada@example.org")
    found = tinker.RestClient(base_url=server.url, api_key=key).whoami().result()
    assert (found.user_urn, found.org_urn, found.email) == ("ada", "tml:organization:home", "ada@example.org")
    with pytest.raises(RuntimeError, match="whoami requires JWT auth"):
        server.rest().whoami().result()


def window():
    start = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    return start, start + timedelta(hours=1)


def test_the_rest_client_still_has_the_methods_of_the_admin_client(server):
    rest, admin = server.rest(), server.admin()
    assert rest.get_audit_log().result() == admin.get_audit_log().result()
    assert rest.get_billing_usage(*window()).result() == admin.get_billing_usage(*window()).result()
    storage = admin.get_current_checkpoint_storage_usage().result()
    assert rest.get_current_checkpoint_storage_usage().result() == storage


def test_the_sdks_own_plumbing_stands(server, service_client):
    run = service_client.create_lora_training_client(LLAMA, rank=4).result()
    sampler = tinker.SamplingClient.create(service_client.holder, base_model=LLAMA).result()
    assert len(sampler.sample(PROMPT, 1, ONE_TOKEN).result(timeout=60).sequences) == 1
    sampler.on_queue_state_change(QueueState.PAUSED_CAPACITY, "another model is loading")
    for client in (service_client, run, sampler):
        assert client.get_telemetry() is service_client.get_telemetry()
    for client in (server.rest(), server.admin()):
        client.get_telemetry()


# The deprecated twins


@pytest.fixture
def made(server, service_client, trained):
    """Something of every kind, for methods to be about."""
    run = trained()
    state = run.save_state("state").result().path
    snapshot = run.save_weights_for_sampler("snapshot").result().path
    export = run.save_weights_external("export").result().path
    sampler = service_client.create_sampling_client(model_path=snapshot).result()
    session = run.model_id.partition(":")[0]
    (sampler_id, *_) = server.rest().get_session(session).result().sampler_ids
    return {
        "run": run, "state": state, "snapshot": snapshot, "export": export, "sampler": sampler, "session": session,
        "sampler_id": sampler_id,
    }  # fmt: skip


def calls_of(made, data):
    """Every twin's arguments, in an order in which they can be called."""
    run, state, batch = made["run"].model_id, made["state"], data.supervised(5)

    def custom(_, logprobs):
        return -logprobs[0].sum(), {}

    return {
        tinker.RestClient: {
            "get_training_run": (run,),
            "get_training_run_by_tinker_path": (state,),
            "list_training_runs": (),
            "list_checkpoints": (run,),
            "list_user_checkpoints": (),
            "publish_checkpoint_from_tinker_path": (state,),
            "unpublish_checkpoint_from_tinker_path": (state,),
            "set_checkpoint_ttl_from_tinker_path": (state, 3600),
            "get_external_weights_urls": (made["export"],),
            "copy_weights": (state, "elsewhere"),
            "get_session": (made["session"],),
            "list_sessions": (),
            "assign_session_project": (made["session"], "elsewhere"),
            "get_sampler": (made["sampler_id"],),
            "export_session_trace": (made["session"],),
            "get_audit_log": (),
            "get_billing_usage": window(),
            "get_current_checkpoint_storage_usage": (),
            "delete_checkpoint": (run, "weights/state"),
            "delete_checkpoint_from_tinker_path": (made["export"],),
        },
        tinker.AdminClient: {
            "get_audit_log": (),
            "get_billing_usage": window(),
            "get_current_checkpoint_storage_usage": (),
        },
        tinker.ServiceClient: {
            "create_lora_training_client": (LLAMA,),
            "create_training_client_from_state": (state,),
            "create_training_client_from_state_with_optimizer": (state,),
            "create_sampling_client": (made["snapshot"],),
            "get_server_capabilities": (),
        },
        tinker.TrainingClient: {
            "forward": (batch, "cross_entropy"),
            "forward_backward": (batch, "cross_entropy"),
            "forward_backward_custom": (batch, custom),
            "optim_step": (tinker.AdamParams(),),
            "save_state": ("twin",),
            "save_weights_for_sampler": ("twin",),
            "save_weights_external": ("twin",),
            "save_weights_and_get_sampling_client": (),
            "create_sampling_client": (made["snapshot"],),
            "load_state": (state,),
            "load_state_with_optimizer": (state,),
            "get_info": (),
        },
        tinker.SamplingClient: {
            "sample": (PROMPT, 1, ONE_TOKEN),
            "compute_logprobs": (PROMPT,),
            "get_base_model": (),
        },
    }


async def finished(call):
    """The twins of queued operations give back a future to await once more."""
    result = await call
    return await result if hasattr(result, "__await__") else result


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("kind", CLIENTS)
def test_every_deprecated_twin_still_does_its_work(server, service_client, made, data, kind):
    calls = calls_of(made, data)[kind]
    assert {f"{name}_async" for name in calls} == {name for name in public(kind) if name.endswith("_async")}
    client = {
        tinker.RestClient: server.rest(),
        tinker.AdminClient: server.admin(),
        tinker.ServiceClient: service_client,
        tinker.TrainingClient: made["run"],
        tinker.SamplingClient: made["sampler"],
    }[kind]

    async def call_all():
        for name, arguments in calls.items():
            await finished(getattr(client, f"{name}_async")(*arguments))

    asyncio.run(call_all())
