"""Weaver's client on a bad network: what is lost is asked for again, and nothing happens twice."""

import pytest

from tests.serving import Running
from weaver.backend import ModelSource
from weaver.compat import tinker
from weaver.config import Config
from weaver.conformance.relay import relaying
from weaver.server.app import create_app
from weaver.service import Service

MODEL = "tiny/llama"


class LateServer:
    """Its address is known before it listens; it answers polls after a twentieth of a second."""

    def __init__(self, folder, data_dir, **options):
        self.service = Service(Config(models=(ModelSource(MODEL, str(folder), "cpu"),), data_dir=data_dir))
        self._running = Running(create_app(self.service, poll_seconds=0.05, **options))
        self.url, self.start = self._running.url, self._running.start

    def stop(self):
        self._running.stop()
        self.service.close()


@pytest.fixture
def late(folder, tmp_path):
    server = LateServer(folder, tmp_path)
    yield server
    server.stop()


def datum(length=9):
    tokens = [2 + n % 50 for n in range(length)]
    inputs = {"target_tokens": tokens, "weights": [1.0] * length}
    return tinker.Datum(tinker.ModelInput.from_ints(tokens), inputs)


def losses(client, steps):
    trainer = client.create_lora_training_client(MODEL, rank=4, seed=7).result(timeout=120)
    found = []
    for _ in range(steps):
        found.append(trainer.forward_backward([datum()], "cross_entropy"))
        trainer.optim_step(tinker.AdamParams(learning_rate=0.02))
    path = trainer.save_state("end").result(timeout=120).path
    return [future.result(timeout=120).metrics["loss:sum"] for future in found], path


def test_a_server_that_comes_later_is_waited_for_and_polls_end_and_begin_again(late):
    client = tinker.ServiceClient(base_url=late.url, api_key="tml-x")
    creating = client.create_lora_training_client(MODEL, rank=4, seed=7)
    with pytest.raises(TimeoutError):
        creating.result(timeout=0.1)
    late.start()
    trainer = creating.result(timeout=60)
    output = trainer.forward_backward([datum(250)] * 40, "cross_entropy").result(timeout=120)
    assert len(output.loss_fn_outputs) == 40
    client.close("success").result(timeout=60)


def test_answers_that_get_lost_change_nothing(late, ways):
    late.start()
    expected, _ = losses(ways["wire"].client(), 3)
    with relaying(late.url) as relay:
        client = tinker.ServiceClient(base_url=relay.url, api_key="tml-x")
        relay.losing |= {"create_model", "forward_backward", "optim_step", "save_weights", "retrieve_future"}
        found, path = losses(client, 3)
        assert found == pytest.approx(expected, rel=1e-6)
        assert relay.losing == set()
        for operation in ("create_model", "forward_backward", "optim_step", "save_weights"):
            first, again = relay.of(operation)[:2]
            assert first.body == again.body, operation
        relay.losing |= {"asample", "retrieve_future"}
        sampler = client.create_sampling_client(base_model=MODEL).result(timeout=60)
        params = tinker.SamplingParams(max_tokens=3, stop=[])
        assert len(sampler.sample(tinker.ModelInput.from_ints([2, 3]), 1, params).result(timeout=60).sequences) == 1
        first, again = relay.of("asample")
        assert first.answer == again.answer
        client.close("success").result(timeout=60)
        assert late.service.checkpoint_info(path).name == "end"


def test_only_what_belongs_to_the_protocol_is_sent(late):
    late.start()
    with relaying(late.url) as relay, tinker.ServiceClient(base_url=f"{relay.url}/", api_key="tml-secret") as client:
        losses(client, 1)
        asked = {one.operation for one in relay.exchanges}
        assert asked == {
            "config",
            "create_session",
            "create_model",
            "retrieve_future",
            "get_info",
            "forward_backward",
            "optim_step",
            "save_weights",
        }
        assert {one.headers.get("x-api-key") or one.headers.get("X-API-Key") for one in relay.exchanges} == {
            "tml-secret"
        }


def test_a_server_wants_a_key(late, monkeypatch):
    monkeypatch.setenv("HOME", str(late.service._data_dir))
    with pytest.raises(tinker.TinkerError, match="api_key"):
        tinker.ServiceClient(base_url=late.url).create_lora_training_client(MODEL)
    with pytest.raises(tinker.TinkerError, match="tml-"):
        tinker.ServiceClient(base_url=late.url, api_key="sk-1").create_lora_training_client(MODEL)
    late.start()


def test_a_wrong_key_is_refused_at_once(folder, tmp_path):
    server = LateServer(folder, tmp_path, api_keys=("tml-right",))
    server.start()
    with pytest.raises(tinker.AuthenticationError):
        tinker.ServiceClient(base_url=server.url, api_key="tml-wrong").create_lora_training_client(MODEL).result()
    with pytest.raises(tinker.AuthenticationError):
        tinker.RestClient(base_url=server.url, api_key="tml-wrong").list_sessions().result()
    server.stop()


def test_the_address_and_the_key_come_from_the_environment_too(late, monkeypatch):
    late.start()
    monkeypatch.setenv("TINKER_BASE_URL", late.url)
    monkeypatch.setenv("TINKER_API_KEY", "tml-x")
    with tinker.ServiceClient() as client:
        assert client.create_lora_training_client(MODEL, rank=2).result().get_info().lora_rank == 2
    assert tinker.RestClient().list_sessions().result().sessions
    assert tinker.auth.tinker_has_credentials()
    tinker.auth.raise_if_tinker_not_accessible()
