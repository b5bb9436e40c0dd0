"""What is said, and how: names, numbers and answers that the SDK relies on."""

import numpy as np
import tinker
from tinker.proto import tinker_public_pb2 as wire

from weaver.conformance.checks import require
from weaver.conformance.lab import RANK, A, B, Lab, run, waited
from weaver.conformance.recipes import Example, Pass, passes
from weaver.conformance.relay import relaying

GROUP = "protocol"

REDUCTIONS = {"sum", "mean", "min", "max", "slack", "hash2", "unique"}


def capabilities_name_the_model(lab: Lab) -> None:
    """A client that asks what it may train must find the model there."""
    answer = waited(tinker.RestClient(base_url=lab.url, api_key=lab.api_key).get_server_capabilities())
    names = [model.model_name for model in answer.supported_models]
    require(lab.model in names, f"get_server_capabilities lists {names}, without {lab.model!r}")


def a_model_tells_its_settings(lab: Lab) -> None:
    """The SDK picks a tokenizer by the model's name, and people check the rank they pay for."""
    with lab.session() as session:
        info = session.model().get_info()
    require(info.model_data.model_name == lab.model, f"get_info says model_name {info.model_data.model_name!r}")
    require(info.lora_rank == RANK, f"get_info says lora_rank {info.lora_rank}, and {RANK} was asked for")


def a_model_is_numbered_in_its_session(lab: Lab) -> None:
    """The SDK works a model's id out by itself when it resumes from a checkpoint: session, `train` and a count."""
    with lab.session() as session:
        models = [session.model().model_id for _ in range(2)]
    sessions = {model_id.partition(":train:")[0] for model_id in models}
    require(len(sessions) == 1, f"two models of one session are called {models}")
    require(models == [f"{next(iter(sessions))}:train:{n}" for n in range(2)], f"models are called {models}")


def metrics_are_named_with_their_reduction(lab: Lab) -> None:
    """The SDK drops a metric whose reduction it does not know, and dies of one that has none."""
    with relaying(lab.url) as relay, lab.session(relay.url) as session:
        run(session.model(), [passes(A)])
        protobufs = [one.answer for one in relay.of("retrieve_future") if "protobuf" in one.content_type]
    names = list(wire.ForwardBackwardOutput.FromString(protobufs[0]).metrics)
    wrong = [name for name in names if name.count(":") != 1 or name.partition(":")[2] not in REDUCTIONS]
    require(not wrong, f"the metrics {wrong} are not named `name:reduction` with a reduction the SDK knows")
    require("loss:sum" in names, f"there is no metric `loss:sum`, only {names}")


def the_loss_is_a_sum_over_tokens(lab: Lab) -> None:
    """A loss that is averaged somewhere makes learning rates depend on how data are batched."""
    with lab.session() as session:
        [output] = run(session.model(), [Pass((A, B), backward=False)])
    logprobs = [one["logprobs"].to_numpy() for one in output.loss_fn_outputs]
    expected = -sum(float((example.weights * lp).sum()) for example, lp in zip((A, B), logprobs, strict=True))
    found = output.metrics["loss:sum"]
    require(abs(found - expected) <= 1e-3 * abs(expected), f"loss:sum is {found:.5g}, and -sum(w lp) {expected:.5g}")


def logprobs_have_the_shape_of_the_targets(lab: Lab) -> None:
    """Losses on several targets per token read a logprob for each of them."""
    targets = np.stack([np.array(A.targets), np.array(A.tokens)], axis=1)
    several = Example(
        A.tokens, tuple(map(tuple, targets.tolist())), (("weights", tuple(((1.0, 0.5),) * len(targets))),)
    )
    with lab.session() as session:
        [output] = run(session.model(), [Pass((A, B, several), backward=False)])
    shapes = [one["logprobs"].to_numpy().shape for one in output.loss_fn_outputs]
    expected = [(len(A.tokens),), (len(B.tokens),), (len(A.tokens), 2)]
    require(shapes == expected, f"the logprobs have shapes {shapes}, the targets {expected}")


def a_heartbeat_is_answered(lab: Lab) -> None:
    """A session whose heartbeats fail looks dead to its client, which then says so every two minutes."""
    with lab.session() as session:
        session_id = session.model().model_id.partition(":train:")[0]
        answer = lab.post("session_heartbeat", {"session_id": session_id, "type": "session_heartbeat"})
    require(answer.status_code == 200, f"session_heartbeat is answered with {answer.status_code}: {answer.text[:200]}")
    require(answer.json().get("type") == "session_heartbeat", f"session_heartbeat is answered with {answer.text[:200]}")


def a_refusal_has_a_length_and_a_sentence(lab: Lab) -> None:
    """The SDK takes a 400 without Content-Length for a broken proxy and repeats the request."""
    for path in ("create_session", "optim_step", "asample"):
        answer = lab.post(path, {"model_id": 7, "sampling_session_id": 7, "tags": 7})
        length = int(answer.headers.get("content-length", 0))
        require(400 <= answer.status_code < 500, f"nonsense for {path} is answered with {answer.status_code}")
        require(length > 0, f"the {answer.status_code} of {path} has no Content-Length")
        require("detail" in answer.json(), f"the {answer.status_code} of {path} has no `detail`: {answer.text[:200]}")


CHECKS = (
    capabilities_name_the_model,
    a_model_tells_its_settings,
    a_model_is_numbered_in_its_session,
    metrics_are_named_with_their_reduction,
    the_loss_is_a_sum_over_tokens,
    logprobs_have_the_shape_of_the_targets,
    a_heartbeat_is_answered,
    a_refusal_has_a_length_and_a_sentence,
)
