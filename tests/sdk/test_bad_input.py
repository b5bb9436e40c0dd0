"""Whatever cannot be computed as asked is refused by name; nothing has changed then, and the next call works.

`raw` cases go around the SDK, which would refuse them itself or cannot say them.
"""

from dataclasses import dataclass, replace
from itertools import count

import httpx
import numpy as np
import pytest
import tinker
from safetensors.numpy import load_file
from tinker.proto import tinker_public_pb2 as wire

LLAMA, QWEN = "tiny/llama", "tiny/qwen3"
VOCABULARY, CONTEXT = 97, 256
STILL = tinker.AdamParams(learning_rate=0.0)
PROMPT = [5, 6, 7]
NAN, INF = float("nan"), float("inf")


class Refused(Exception):
    """A raw request's 400."""


REFUSALS = (tinker.BadRequestError, tinker.NotFoundError, tinker.RequestFailedError, Refused)


@dataclass
class Subject:
    """A client with everything that bad input could disturb, and what it must still give afterwards."""

    server: object
    service_client: tinker.ServiceClient
    client: tinker.TrainingClient
    sampler: tinker.SamplingClient
    sampler_path: str
    state_path: str
    batch: list
    tensors: dict
    norm: float
    logprobs: list
    numbers: count

    def post(self, path, body, **headers):
        headers = {"X-API-Key": "tml-test"} | headers
        given = {"json": body} if isinstance(body, dict) else {"content": body}
        answer = httpx.post(f"{self.server.url}/api/v1/{path}", headers=headers, timeout=60, **given)
        if answer.status_code == 400:
            raise Refused(answer.json()["detail"])
        raise AssertionError(f"{answer.status_code}: {answer.text}")

    def operation(self, path, /, **body):
        """A raw operation of the client's model."""
        self.post(path, {"model_id": self.client.model_id, "seq_id": self.number()} | body)

    def number(self):
        """The client's next number, taken as if the SDK had sent something with it."""
        self.client._turn_counter += 1
        return self.client._get_request_id() + 1

    def message(self, *data, **fields):
        """A raw forward_backward."""
        message = wire.ForwardBackwardRequest(
            model_id=self.client.model_id, seq_id=self.number(), data=data, **{"loss_fn": "cross_entropy"} | fields
        )
        self.post("forward_backward", message.SerializeToString(), **{"Content-Type": "application/x-protobuf"})

    def sample(self, tokens=PROMPT, num_samples=1, include_prompt_logprobs=False, topk_prompt_logprobs=0, **options):
        """Through the SDK: options of sample() by their names, the rest are SamplingParams."""
        own = {"topk_sample_logprobs", "target_prompt_logprobs", "prompt_alt_tokens_k", "prompt_logprobs_last_n"}
        asked = {name: value for name, value in options.items() if name in own}
        params = {"max_tokens": 2} | {name: value for name, value in options.items() if name not in own}
        prompt = tokens if isinstance(tokens, tinker.ModelInput) else tinker.ModelInput.from_ints(tokens)
        self.sampler.sample(
            prompt, num_samples, tinker.SamplingParams(**params), include_prompt_logprobs, topk_prompt_logprobs, **asked
        ).result(timeout=60)

    def raw_sample(self, params=None, **fields):
        sampler_id = self.service_client.create_sampling_client(base_model=LLAMA).result()._sampling_session_id
        body = {
            "sampling_session_id": sampler_id,
            "seq_id": next(self.numbers),
            "prompt": {"chunks": [{"tokens": PROMPT}]},
            "sampling_params": {"max_tokens": 2} | (params or {}),
        }
        self.post("asample", body | fields)


@pytest.fixture(scope="module")
def subject(server):
    with server.client() as service_client:
        client = service_client.create_lora_training_client(LLAMA, rank=3, seed=1).result()
        batch = [datum(), datum()]
        client.forward_backward(batch, "cross_entropy").result()
        client.optim_step(tinker.AdamParams(learning_rate=0.05)).result()
        state_path = client.save_state("taken").result().path
        sampler_path = client.save_weights_for_sampler("taken").result().path
        client.forward_backward(batch, "cross_entropy").result()
        norm = client.optim_step(STILL).result().metrics["grad_norm"]
        assert norm > 0
        sampler = service_client.create_sampling_client(model_path=sampler_path).result()
        logprobs = sampler.compute_logprobs(tinker.ModelInput.from_ints(PROMPT)).result()
        yield Subject(
            server, service_client, client, sampler, sampler_path, state_path, batch, server.tensors(state_path), norm,
            logprobs, count(1_000_000),
        )  # fmt: skip


def datum(tokens=(5, 6, 7), targets=(6, 7, 8), **inputs):
    """A datum like any other, but for what a test changes. An input given as None is left out."""
    given = {"target_tokens": np.array(targets), "weights": np.ones(len(targets), np.float32)} | inputs
    arrays = {name: value for name, value in given.items() if value is not None}
    return tinker.Datum(model_input=tinker.ModelInput.from_ints(list(tokens)), loss_fn_inputs=arrays)


def floats(*values):
    return np.array(values, np.float32)


def passes(*data, loss="cross_entropy", config=None):
    """A case: these datums behind a good one."""
    return lambda subject: subject.client.forward_backward([subject.batch[0], *data], loss, config).result(timeout=60)


def policy(config=None, loss="ppo", **inputs):
    given = {"weights": None, "logprobs": floats(-1, -2, -3), "advantages": floats(1, -1, 0.5)} | inputs
    return lambda subject: subject.client.forward_backward([datum(**given)], loss, config).result(timeout=60)


def steps(**params):
    return lambda subject: subject.client.optim_step(tinker.AdamParams(**params)).result(timeout=60)


def image_datum():
    chunk = tinker.types.ImageChunk(data=b"png", format="png", expected_tokens=3)
    return replace(datum(), model_input=tinker.ModelInput(chunks=[chunk]))


def tensor(values, dtype=wire.DTYPE_FLOAT32, shape=None):
    kind = {wire.DTYPE_FLOAT32: "<f4", wire.DTYPE_INT64: "<i8"}.get(dtype, "<i2")
    values = np.asarray(values, kind)
    return wire.Tensor(dense=values.tobytes(), dtype=dtype, shape=values.shape if shape is None else shape)


def raw_datum(tokens=(5, 6, 7), **inputs):
    text = wire.Chunk(encoded_text=wire.EncodedTextChunk(tokens=np.array(tokens, "<i4").tobytes()))
    given = {"target_tokens": tensor([6, 7, 8], wire.DTYPE_INT64), "weights": tensor([1, 1, 1])} | inputs
    return wire.Datum(model_input=[text], loss_fn_inputs=given)


TRAINING = {
    "an unknown loss": (passes(loss="no_such"), r"loss_fn: there is no loss 'no_such'; there are: .*cross_entropy"),
    "a loss input that is missing": (passes(datum(weights=None)), r"data\[1\].loss_fn_inputs lacks 'weights'"),
    "no targets": (passes(datum(target_tokens=None)), r"data\[1\].loss_fn_inputs lacks 'target_tokens'"),
    "a loss input of another loss that is missing": (policy(advantages=None), r"data\[0\].* lacks 'advantages'"),
    "a loss input nobody reads": (
        passes(datum(advantages=floats(1, 1, 1))),
        r"data\[1\].loss_fn_inputs\['advantages'\] is not read by the loss 'cross_entropy'; it reads .*weights",
    ),
    "a loss input of wrong length": (
        passes(datum(weights=floats(1, 1))),
        r"data\[1\].loss_fn_inputs\['weights'\] has shape \(2,\); it must be .* \(3,\)",
    ),
    "a loss input of wrong rank": (
        passes(datum(weights=np.ones((3, 1), np.float32))),
        r"'weights'\] has shape \(3, 1\)",
    ),
    "targets of wrong length": (
        passes(datum(targets=(6, 7), weights=floats(1, 1))),
        r"target_tokens of data\[1\].* has shape \(2,\); the model input has 3 tokens",
    ),
    "targets of rank three": (
        passes(datum(target_tokens=np.ones((3, 1, 1), np.int64), weights=np.ones((3, 1, 1), np.float32))),
        r"target_tokens of data\[1\].* has shape \(3, 1, 1\)",
    ),
    "no target per token": (
        passes(datum(target_tokens=np.ones((3, 0), np.int64), weights=np.ones((3, 0), np.float32))),
        r"target_tokens of data\[1\].* has shape \(3, 0\)",
    ),
    "a loss input of wrong dtype": (
        passes(datum(weights=np.ones(3, np.int64))),
        r"data\[1\].loss_fn_inputs\['weights'\] has dtype int64; the loss 'cross_entropy' needs float32",
    ),
    "targets of wrong dtype": (
        passes(datum(target_tokens=floats(6, 7, 8))),
        r"data\[1\].loss_fn_inputs\['target_tokens'\] has dtype float32; .* needs int64",
    ),
    "a weight that is NaN": (
        passes(datum(weights=floats(1, NAN, 1))),
        r"data\[1\].loss_fn_inputs\['weights'\] is nan at \[1\]; every value must be finite",
    ),
    "an advantage that is infinite": (policy(advantages=floats(1, 1, -INF)), r"'advantages'\] is -inf at \[2\]"),
    "a sampled logprob that is NaN": (policy(logprobs=floats(NAN, 0, 0)), r"'logprobs'\] is nan at \[0\]"),
    "a token beyond the vocabulary": (
        passes(datum(tokens=(5, VOCABULARY, 7))),
        r"data\[1\].model_input\[1\] is 97; token ids of 'tiny/llama' go from 0 to 96",
    ),
    "a negative token": (passes(datum(tokens=(-1, 6, 7))), r"data\[1\].model_input\[0\] is -1; token ids"),
    "a target beyond the vocabulary": (
        passes(datum(targets=(6, 7, 2**40))),
        r"data\[1\].loss_fn_inputs\['target_tokens'\]\[2\] is 1099511627776; token ids",
    ),
    "a target that says ignore me": (passes(datum(targets=(-100, 7, 8))), r"'target_tokens'\]\[0\] is -100; token ids"),
    "an empty sequence": (passes(datum(tokens=(), targets=())), r"data\[1\].model_input is empty"),
    "a sequence beyond the context": (
        passes(datum(tokens=(5,) * (CONTEXT + 1), targets=(6,) * (CONTEXT + 1))),
        r"data\[1\].model_input: sequence length 257 exceeds max sequence length 256 of 'tiny/llama'",
    ),
    "an image": (
        passes(image_datum()),
        r"data\[1\].model_input\[0\] is of type image; this server reads encoded_text only",
    ),
    "audio": (
        passes(replace(datum(), model_input=tinker.ModelInput(chunks=[tinker.DmelChunk(dmel=b"\x00")]))),
        r"data\[1\].model_input\[0\] is of type dmel",
    ),
    "a loss config nobody reads": (
        passes(config={"beta": 1.0}),
        r"loss_fn_config\['beta'\] is not read by .*'cross_entropy'",
    ),
    "a misspelt loss config": (
        policy({"clip_low": 0.8}),
        r"loss_fn_config\['clip_low'\] is not read .*clip_high_threshold",
    ),
    "a loss config out of range": (
        policy({"clip_low_threshold": -0.1}),
        r"loss_fn_config\['clip_low_threshold'\] is -0.1",
    ),
    "a loss config that is NaN": (
        policy({"clip_high_threshold": NAN}),
        r"loss_fn_config\['clip_high_threshold'\] is nan",
    ),
    "a loss config that is infinite": (policy({"clip_high_threshold": INF}), r"\['clip_high_threshold'\] is inf"),
    "a loss config that is text": (
        policy({"clip_high_threshold": "high"}),
        r"'clip_high_threshold'\] is 'high'; .* number",
    ),
    "a loss config without default left out": (
        policy(loss="dro"),
        r"loss_fn_config\['beta'\] is missing; the loss 'dro'",
    ),
    "a learning rate below zero": (steps(learning_rate=-1e-4), r"adam_params.learning_rate is -0.0001"),
    "a learning rate that is NaN": (
        steps(learning_rate=NAN),
        r"adam_params.learning_rate is null, which is how JSON has NaN",
    ),
    "a learning rate that is infinite": (steps(learning_rate=INF), r"adam_params.learning_rate is null"),
    "beta1 of one": (steps(beta1=1.0), r"adam_params.beta1 is 1.0; it must be finite and at least 0 and below 1"),
    "beta1 below zero": (steps(beta1=-0.1), r"adam_params.beta1 is -0.1"),
    "beta2 of one": (steps(beta2=1.0), r"adam_params.beta2 is 1.0"),
    "beta2 that is NaN": (steps(beta2=NAN), r"adam_params.beta2 is null"),
    "eps of zero": (steps(eps=0.0), r"adam_params.eps is 0.0; it must be finite and above 0"),
    "eps that is NaN": (steps(eps=NAN), r"adam_params.eps is null"),
    "a weight decay below zero": (steps(weight_decay=-0.1), r"adam_params.weight_decay is -0.1"),
    "a weight decay that is infinite": (steps(weight_decay=INF), r"adam_params.weight_decay is null"),
    "a clip below zero": (steps(grad_clip_norm=-1.0), r"adam_params.grad_clip_norm is -1.0; .* 0 \(off\) or more"),
    "a clip that is NaN": (steps(grad_clip_norm=NAN), r"adam_params.grad_clip_norm is null"),
    "another optimizer": (
        lambda s: s.client.optim_step(tinker.DimuonParams(learning_rate=0.1)).result(timeout=60),
        "are for the optimizer 'dimuon', but the model was created with 'adamw'",
    ),
    "raw: no data": (lambda s: s.message(), "data is empty; give at least one datum"),
    "raw: numbers that are NaN in JSON": (
        lambda s: s.post(
            "optim_step",
            f'{{"model_id": "{s.client.model_id}", "seq_id": {s.number()}, "adam_params": {{"beta1": NaN}}}}'.encode(),
        ),
        "adam_params.beta1 is nan; it must be finite",
    ),
    "raw: an unknown Adam parameter": (
        lambda s: s.operation("optim_step", adam_params={"learning_rate": 0.1, "amsgrad": True}),
        "adam_params.amsgrad is not a field this server reads here",
    ),
    "raw: an Adam parameter that is text": (
        lambda s: s.operation("optim_step", adam_params={"learning_rate": "0.1"}),
        "adam_params.learning_rate: input should be a valid number, not '0.1'",
    ),
    "raw: a step without parameters": (
        lambda s: s.operation("optim_step"),
        "one of adam_params and optimizer_params must be given",
    ),
    "raw: a tensor of a dtype nobody reads": (
        lambda s: s.message(raw_datum(weights=tensor([1, 1, 1], wire.DTYPE_BFLOAT16))),
        r"data\[0\].loss_fn_inputs\['weights'\] has dtype bfloat16; this server reads float32 and int64",
    ),
    "raw: a tensor with more values than its shape": (
        lambda s: s.message(raw_datum(weights=tensor([1, 1, 1, 1], shape=[3]))),
        r"data\[0\].loss_fn_inputs\['weights'\] declares the shape \[3\] and carries 4 values",
    ),
    "raw: two loss configs that disagree": (
        lambda s: s.message(
            raw_datum(), loss_fn_config={"a": 1.0}, loss_fn_config_v2={"a": wire.LossConfigValue(number=2.0)}
        ),
        r"loss_fn_config\['a'\] is 1.0 in loss_fn_config and 2.0 in loss_fn_config_v2",
    ),
    "raw: a body that is no protobuf": (
        lambda s: s.post("forward_backward", b"\xff\xff", **{"Content-Type": "application/x-protobuf"}),
        "the body is not a protobuf ForwardBackwardRequest",
    ),
    "raw: the number of the creation": (
        lambda s: s.post("optim_step", {"model_id": s.client.model_id, "seq_id": 0, "adam_params": {}}),
        "seq_id 0 .* was used by a different request",
    ),
}

STATES = {
    "a name that climbs out": (
        lambda s: s.client.save_state("..").result(60),
        r"the checkpoint name '\.\.' must be 1 to 128",
    ),
    "a name that climbs out further down": (
        lambda s: s.client.save_state("a/../../b").result(60),
        r"the checkpoint name 'a/\.\./\.\./b' must be",
    ),
    "a name that is an absolute path": (
        lambda s: s.client.save_state("/tmp/x").result(60),
        "checkpoint name '/tmp/x' must be",
    ),
    "a name with a backslash": (lambda s: s.client.save_state("a\\b").result(60), "the checkpoint name .* must be"),
    "a name with a zero byte": (lambda s: s.client.save_state("a\0b").result(60), "the checkpoint name .* must be"),
    "a hidden name": (lambda s: s.client.save_state(".a").result(60), r"the checkpoint name '\.a' must be"),
    "an empty name": (lambda s: s.client.save_state("").result(60), "the checkpoint name '' must be"),
    "a name that is too long": (
        lambda s: s.client.save_state("a" * 129).result(60),
        "the checkpoint name 'a+' must be",
    ),
    "a sampler's name that climbs out": (
        lambda s: s.client.save_weights_for_sampler("../x").result(60),
        r"the checkpoint name '\.\./x' must be",
    ),
    "a sampler's name that is an absolute path": (
        lambda s: s.client.save_weights_for_sampler("/etc/x").result(60),
        "the checkpoint name '/etc/x' must be",
    ),
    "a state's name that is taken": (
        lambda s: s.client.save_state("taken").result(60),
        "weights/taken exists and never changes",
    ),
    "a sampler's name that is taken": (
        lambda s: s.client.save_weights_for_sampler("taken").result(60),
        "sampler_weights/taken exists and never changes",
    ),
    "raw: a sampler's snapshot to be overwritten": (
        lambda s: s.operation("save_weights_for_sampler", path="taken", overwrite=True),
        "overwrite is not a field this server reads here",
    ),
    "a time to live that is too short": (
        lambda s: s.client.save_state("a", ttl_seconds=60).result(60),
        "ttl_seconds is 60",
    ),
    "a sampler's time to live that is too long": (
        lambda s: s.client.save_weights_for_sampler("a", ttl_seconds=10**9).result(60),
        "ttl_seconds is 1000000000",
    ),
    "raw: a sampler of another kind": (
        lambda s: s.operation("save_weights_for_sampler", sampling_session_seq_id=10**6, kind="live"),
        "kind is 'live': samplers are 'snapshot' or 'inflight'",
    ),
    "raw: an inflight sampler under a name": (
        lambda s: s.operation("save_weights_for_sampler", path="changing", kind="inflight"),
        "an inflight sampler changes, so it is not kept under a path: leave it out",
    ),
    "raw: a snapshot with a name and without": (
        lambda s: s.operation("save_weights_for_sampler", sampling_session_seq_id=10**6, path="a"),
        "one of path and sampling_session_seq_id must be given, and not both",
    ),
    "loading what is no path": (
        lambda s: s.client.load_state("taken").result(60),
        "path 'taken' is not of the form tinker://",
    ),
    "loading a path that climbs out": (
        lambda s: s.client.load_state("tinker://../weights/../x").result(60),
        "is not of the form tinker://",
    ),
    "loading a file": (lambda s: s.client.load_state("/etc/passwd").result(60), "is not of the form tinker://"),
    "loading what does not exist": (
        lambda s: s.client.load_state(f"tinker://{s.client.model_id}/weights/none").result(60),
        "there is no checkpoint 'tinker://.*/weights/none', or it has expired",
    ),
    "loading a sampler's snapshot": (
        lambda s: s.client.load_state(s.sampler_path).result(60),
        "sampler_weights/taken' is a sampler's snapshot; training starts from a path that save_state returned",
    ),
    "loading a sampler's snapshot with an optimizer": (
        lambda s: s.client.load_state_with_optimizer(s.sampler_path).result(60),
        "is a sampler's snapshot",
    ),
    "raw: an access token for weights": (
        lambda s: s.operation("load_weights", path=s.state_path, optimizer=True, weights_access_token="secret"),
        "weights_access_token must be absent",
    ),
    "exported weights": (
        lambda s: s.operation("save_weights", path="x", age_encryption_recipients=["a"]),
        "age_encryption_recipients is not a field this server reads here",
    ),
}


def create(**options):
    options = {"base_model": LLAMA} | options
    return lambda subject: subject.service_client.create_lora_training_client(**options).result(60)


def raw_create(**body):
    """In the client's session, under a number the SDK will not reach."""

    def call(subject):
        session_id = subject.client.model_id.partition(":")[0]
        given = {"session_id": session_id, "model_seq_id": next(subject.numbers), "base_model": LLAMA}
        subject.post("create_model", given | body)

    return call


CREATION = {
    "an unknown model": (
        create(base_model="no/such"),
        "base_model 'no/such' is not served here; there are: tiny/llama, tiny/qwen3",
    ),
    "a model by its folder": (create(base_model="/etc"), "base_model '/etc' is not served here"),
    "rank zero": (create(rank=0), "lora_config.rank is 0; it must be from 1 to 1024"),
    "a negative rank": (create(rank=-4), "lora_config.rank is -4"),
    "a huge rank": (create(rank=100_000), "lora_config.rank is 100000"),
    "a seed beyond 64 bits": (create(seed=2**64), "lora_config.seed is 18446744073709551616; it must fit in 64 bits"),
    "raw: an adapter of nothing": (
        raw_create(lora_config={"rank": 4, "train_mlp": False, "train_attn": False, "train_unembed": False}),
        "lora_config trains nothing",
    ),
    "raw: an unknown LoRA setting": (
        raw_create(lora_config={"rank": 4, "alpha": 8}),
        "lora_config.alpha is not a field",
    ),
    "raw: a rank that is text": (
        raw_create(lora_config={"rank": "4"}),
        "lora_config.rank: input should be a valid integer",
    ),
    "another optimizer": (
        create(optimizer=tinker.types.optimizer.OptimizerConfigBase(type="sgd")),
        "optimizer_config.type is 'sgd': this server trains with 'adamw' or 'dimuon'",
    ),
    "training from a sampler's snapshot": (
        lambda s: s.service_client.create_training_client_from_state(s.sampler_path).result(60),
        "sampler_weights/taken' is a sampler's snapshot; training starts from a path that save_state returned",
    ),
    "training from a sampler's snapshot with an optimizer": (
        lambda s: s.service_client.create_training_client_from_state_with_optimizer(s.sampler_path).result(60),
        "is a sampler's snapshot",
    ),
    "training from a state of another model": (
        lambda s: s.service_client.create_training_client_from_state(s.state_path, base_model=QWEN).result(60),
        "base_model is 'tiny/qwen3', but 'tinker://.*' was trained on 'tiny/llama'",
    ),
    "training from what is no path": (
        lambda s: s.service_client.create_training_client_from_state("/etc/passwd").result(60),
        "path '/etc/passwd' is not of the form tinker://",
    ),
    "sampling from a training state": (
        lambda s: s.service_client.create_sampling_client(model_path=s.state_path).result(60),
        "weights/taken' is a training state; sample from a path that save_weights_for_sampler returned",
    ),
    "sampling from an unknown model": (
        lambda s: s.service_client.create_sampling_client(base_model="no/such").result(60),
        "base_model 'no/such' is not served here",
    ),
    "training from what does not exist": (
        lambda s: s.service_client.create_training_client_from_state("tinker://a/weights/b").result(60),
        "there is no checkpoint 'tinker://a/weights/b', or it has expired",
    ),
    "sampling from what does not exist": (
        lambda s: s.service_client.create_sampling_client(model_path="tinker://a/sampler_weights/b").result(60),
        "there is no checkpoint 'tinker://a/sampler_weights/b', or it has expired",
    ),
    "sampling from a path that climbs out": (
        lambda s: s.service_client.create_sampling_client(model_path="tinker://../../etc").result(60),
        "is not of the form tinker://",
    ),
}

SAMPLING = {
    "an empty prompt": (lambda s: s.sample([]), "prompt is empty; give at least one token"),
    "a token beyond the vocabulary": (
        lambda s: s.sample([5, VOCABULARY]),
        r"prompt\[1\] is 97; token ids of 'tiny/llama' go from 0 to 96",
    ),
    "a negative token": (
        lambda s: s.sample([5, -1]),
        r"prompt.chunks\[0\].tokens\[1\]: input should be greater than or equal",
    ),
    "an image": (
        lambda s: s.sample(image_datum().model_input),
        r"prompt.chunks\[0\] is of type 'image': this server reads encoded_text only",
    ),
    "an image by its location": (
        lambda s: s.sample(
            tinker.ModelInput(
                chunks=[tinker.types.ImageAssetPointerChunk(location="x", format="png", expected_tokens=1)]
            )
        ),
        "is of type 'image_asset_pointer'",
    ),
    "a prompt as long as the context": (
        lambda s: s.sample([5] * CONTEXT, max_tokens=None),
        "the prompt has 256 tokens and fills the context of 'tiny/llama', 256",
    ),
    "prompt and answer beyond the context": (
        lambda s: s.sample([5] * 250, max_tokens=7),
        r"Prompt length plus max_tokens exceeds the model's context window: 250 \+ 7 > 256",
    ),
    "no sample": (lambda s: s.sample(num_samples=0), "num_samples is 0; it must be from 1"),
    "fewer than no samples": (lambda s: s.sample(num_samples=-1), "num_samples is -1"),
    "too many samples": (lambda s: s.sample(num_samples=10**6), "num_samples is 1000000"),
    "no tokens": (lambda s: s.sample(max_tokens=0), "sampling_params.max_tokens is 0; it must be at least 1"),
    "a temperature below zero": (lambda s: s.sample(temperature=-0.5), "sampling_params.temperature is -0.5"),
    "raw: a temperature that is null": (
        lambda s: s.raw_sample({"temperature": None}),
        "sampling_params.temperature is null, which is how JSON has NaN",
    ),
    "top_k of zero": (lambda s: s.sample(top_k=0), "sampling_params.top_k is 0; it must be at least 1, or -1"),
    "top_k of minus two": (lambda s: s.sample(top_k=-2), "sampling_params.top_k is -2"),
    "top_p of zero": (lambda s: s.sample(top_p=0.0), "sampling_params.top_p is 0.0; it must be above 0 and at most 1"),
    "top_p above one": (lambda s: s.sample(top_p=1.5), "sampling_params.top_p is 1.5"),
    "a negative seed": (lambda s: s.sample(seed=-1), r"sampling_params.seed is -1; it must be from 0 to 2\^64 - 1"),
    "a seed beyond 64 bits": (lambda s: s.sample(seed=2**64), "sampling_params.seed is 18446744073709551616"),
    "a stop token beyond the vocabulary": (
        lambda s: s.sample(stop=[VOCABULARY]),
        "sampling_params.stop has the token id 97",
    ),
    "an empty stop string": (lambda s: s.sample(stop=["a", ""]), "sampling_params.stop has an empty string"),
    "raw: tokens and strings as stops": (
        lambda s: s.raw_sample({"stop": [1, "a"]}),
        "sampling_params.stop must be a string, a list of strings or a list of token ids, not mixed",
    ),
    "raw: an unknown sampling parameter": (
        lambda s: s.raw_sample({"min_p": 0.1}),
        "sampling_params.min_p is not a field this server reads here",
    ),
    "more top logprobs than tokens": (
        lambda s: s.sample(include_prompt_logprobs=True, topk_prompt_logprobs=VOCABULARY + 1),
        "topk_prompt_logprobs is 98; it must be from 0 to 97",
    ),
    "a negative number of top logprobs": (lambda s: s.sample(topk_prompt_logprobs=-1), "topk_prompt_logprobs is -1"),
    "more top logprobs of samples than tokens": (
        lambda s: s.sample(topk_sample_logprobs=VOCABULARY + 1),
        "topk_sample_logprobs is 98; it must be from 0 to 97",
    ),
    "a table of targets with a row for the first token": (
        lambda s: s.sample(target_prompt_logprobs=tinker.TensorData.from_numpy(np.ones((3, 1), np.int64))),
        "target_prompt_logprobs has 3 rows; a prompt of 3 tokens needs 2: row i is about position i",
    ),
    "a target outside the vocabulary": (
        lambda s: s.sample(target_prompt_logprobs=tinker.TensorData.from_numpy(np.array([[1, -1], [2, 97]]))),
        r"target_prompt_logprobs\[1, 1\] is 97; token ids of 'tiny/llama' go from 0 to 96, and -1 asks nothing",
    ),
    "targets that ask nothing": (
        lambda s: s.sample(target_prompt_logprobs=tinker.TensorData.from_numpy(np.full((2, 3), -1))),
        "target_prompt_logprobs names no token",
    ),
    "raw: targets without a shape": (
        lambda s: s.raw_sample(target_prompt_logprobs={"data": [1, 2], "dtype": "int64"}),
        r"target_prompt_logprobs has shape \[\]; it must be that of a table",
    ),
    "raw: fewer targets than cells": (
        lambda s: s.raw_sample(target_prompt_logprobs={"data": [1], "dtype": "int64", "shape": [2, 1]}),
        r"target_prompt_logprobs has shape \[2, 1\] and 1 values, which do not fit together",
    ),
    "raw: sparse targets out of order": (
        lambda s: s.raw_sample(
            target_prompt_logprobs={
                "data": [1, 2],
                "dtype": "int64",
                "shape": [2, 9],
                "sparse_crow_indices": [0, 2, 2],
                "sparse_col_indices": [5, 4],
            }
        ),
        "target_prompt_logprobs.sparse_col_indices must ascend within each row",
    ),
    "raw: targets that are no token ids": (
        lambda s: s.raw_sample(target_prompt_logprobs={"data": [1], "dtype": "float32", "shape": [2, 1]}),
        "target_prompt_logprobs.dtype is 'float32': token ids are int64",
    ),
    "more alternative tokens than memory": (
        lambda s: s.sample(prompt_alt_tokens_k=2**26),
        "prompt_alt_tokens_k is 67108864, for 3 tokens: together more than 134217728 values",
    ),
    "logprobs of more than the end of a prompt": (
        lambda s: s.sample(include_prompt_logprobs=True, prompt_logprobs_last_n=3),
        "prompt_logprobs_last_n is 3; for a prompt of 3 tokens it must be from 1 to 2",
    ),
    "raw: the end of prompt logprobs that are not asked for": (
        lambda s: s.raw_sample(prompt_logprobs_last_n=1),
        "prompt_logprobs_last_n is about prompt_logprobs; set that too",
    ),
    "raw: a model in the place of a session": (lambda s: s.raw_sample(base_model=LLAMA), "base_model must be absent"),
}


def refuse(subject, call, message):
    """The call fails with the user's error and these words."""
    with pytest.raises(REFUSALS, match=message) as refused:
        call(subject)
    if isinstance(refused.value, tinker.RequestFailedError):
        assert refused.value.category == "user"


def assert_as_before(subject, gradient):
    """Weights bit for bit, the accumulated gradient by its norm; the calls that tell are the client's next ones."""
    folder = subject.server.folder(subject.client.save_state("after", overwrite=True).result(timeout=60).path)
    found = load_file(folder / "adapter_model.safetensors")
    assert found.keys() == subject.tensors.keys()
    for name, tensor in subject.tensors.items():
        np.testing.assert_array_equal(found[name], tensor)
    assert subject.client.optim_step(STILL).result(timeout=60).metrics["grad_norm"] == gradient


def _cases(**tables):
    return [pytest.param(case, id=f"{kind}: {name}") for kind, table in tables.items() for name, case in table.items()]


@pytest.mark.parametrize("case", _cases(training=TRAINING, states=STATES, creation=CREATION))
def test_bad_input_is_refused_by_name_and_changes_no_training(subject, case):
    subject.client.optim_step(STILL)
    subject.client.forward_backward(subject.batch, "cross_entropy").result(timeout=60)
    refuse(subject, *case)
    assert_as_before(subject, subject.norm)


@pytest.mark.parametrize("case", _cases(sampling=SAMPLING))
def test_bad_sampling_is_refused_by_name_and_the_next_one_works(subject, case):
    refuse(subject, *case)
    prompt = tinker.ModelInput.from_ints(PROMPT)
    assert subject.sampler.compute_logprobs(prompt).result(timeout=60) == subject.logprobs


BAD = datum(weights=floats(1, NAN, 1))


def test_a_bad_datum_among_good_ones_adds_no_gradient_of_the_good_ones(subject):
    subject.client.optim_step(STILL)
    refuse(subject, passes(*subject.batch, BAD), r"data\[3\]")
    assert_as_before(subject, 0.0)


@pytest.mark.parametrize("place", [0, 1024, 2048, 2050])
def test_a_bad_datum_in_any_part_of_a_large_pass_adds_no_gradient_of_the_others(subject, place):
    """The pass is three requests. The SDK would never send anything again if a later one were refused at once."""
    data = [subject.batch[0]] * 2051
    data[place] = BAD
    subject.client.optim_step(STILL)
    refuse(
        subject, lambda s: s.client.forward_backward(data, "cross_entropy").result(timeout=60), r"'weights'\] is nan"
    )
    assert_as_before(subject, 0.0)


def test_an_image_in_a_later_part_is_refused_too(subject):
    data = [*[subject.batch[0]] * 1024, image_datum()]
    subject.client.optim_step(STILL)
    refuse(subject, lambda s: s.client.forward_backward(data, "cross_entropy").result(timeout=60), "is of type image")
    assert_as_before(subject, 0.0)


def test_nothing_was_written_elsewhere(subject):
    data_dir = subject.server.data_dir
    assert not {"a", "b", "x"} & {path.name for path in (*data_dir.rglob("*"), *data_dir.parent.iterdir())}
    assert [path.name for path in (data_dir / "checkpoints").iterdir()] == [subject.client.model_id.replace(":", "-")]
    names = {path.name for path in (data_dir / "checkpoints").glob("*/*/*")}
    assert {name.partition("~")[0] for name in names} == {"taken", "after"}


@pytest.fixture
def guarded(server, folders, tmp_path):
    """A server of its own that asks for a key."""
    running = type(server)(folders, tmp_path)
    running.app.state.context = replace(running.app.state.context, api_keys=("tml-right", "tml-too"))
    yield running
    running.stop()


def test_a_wrong_key_is_refused_before_anything_else(guarded):
    with pytest.raises(tinker.AuthenticationError, match="the X-API-Key header holds none of this server's keys"):
        guarded.client().create_lora_training_client(LLAMA).result(60)
    for path in ("create_session", "forward_backward", "asample", "retrieve_future", "client/config"):
        for headers in ({}, {"X-API-Key": "tml-righ"}, {"X-API-Key": "tml-right "[:-1] + "x"}):
            answer = httpx.post(f"{guarded.url}/api/v1/{path}", content=b"no JSON", headers=headers)
            assert answer.status_code == 401
    for key in ("tml-right", "tml-too"):
        with tinker.ServiceClient(base_url=guarded.url, api_key=key) as client:
            assert client.create_lora_training_client(LLAMA, rank=1).result(60).get_info().lora_rank == 1
