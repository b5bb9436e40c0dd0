"""What a backend computes beside what transformers and peft do: the same adapters, the same data, one process."""

from dataclasses import dataclass

import numpy as np
import rank_tasks
import tiny_models
import torch
from formulas import made_mask

from weaver.backend import Pass
from weaver.domain import Adapter, Datum, LoraSpec, ModelSource, ModelState
from weaver.plugins.losses import weaver_losses

LOSSES = {loss.name: loss for loss in weaver_losses()}
SPECS = {
    "all": LoraSpec(4, 8.0, 3),
    "mlp and head": LoraSpec(7, 16.0, 3, train_attn=False),
    "two of attention": LoraSpec(2, 2.0, 3, train_mlp=False, train_unembed=False, only_modules=("q_proj", "v_proj")),
}
INPUTS = {"weights", "advantages", "surrogate_weights"}

ENTROPIC = {"temperature": 0.6, "entropy_coeff": 0.7}


@dataclass
class Worst:
    """The largest difference of a logprob, and of a gradient relative to its tensor's largest number."""

    logprob: float = 0.0
    gradient: float = 0.0
    where: str = ""

    def add(self, found, expected):
        for one, other in zip(found.logprobs, expected.logprobs, strict=True):
            self.logprob = max(self.logprob, np.abs(one - other).max())
        assert found.gradients.keys() == expected.gradients.keys()
        for name, gradient in expected.gradients.items():
            error = np.abs(found.gradients[name] - gradient).max() / max(np.abs(gradient).max(), 1e-6)
            if not error <= self.gradient:
                self.gradient, self.where = error, name


@dataclass
class Found:
    logprobs: list
    gradients: dict


def datum(generator, tokens, targets=1, masked=False):
    """Random tokens; inputs of every shipped loss, the sampler's logprobs near a tiny model's own."""
    ids = generator.integers(0, tiny_models.VOCABULARY, (tokens + 1, targets))
    target = ids[1:] if targets > 1 else ids[1:, 0]
    numbers = {name: generator.normal(size=target.shape).astype(np.float32) for name in INPUTS}
    numbers["logprobs"] = generator.normal(-5, 0.3, size=target.shape).astype(np.float32)
    numbers["sequence_ratio_mask"] = (generator.random(target.shape) < 0.8).astype(np.float32)
    mask = made_mask(generator, target.tolist(), tiny_models.VOCABULARY) if masked else None
    return Datum(ids[:-1, 0].copy(), {"target_tokens": target.copy(), **numbers}, sampling_mask=mask)


def mixed_passes():
    """Three adapters, several losses and temperatures, one and several targets, with and without gradients, with and
    without entropies and sampling masks, all in one call."""
    generator = np.random.default_rng(5)
    data = {n: datum(generator, n) for n in (3, 5, 8, 9, 14, 21)}
    masked = [datum(generator, n, masked=True) for n in (4, 13, 30)]
    several = [datum(generator, 6, targets=3), datum(generator, 11, targets=3)]
    return [
        Pass("all", [data[9], data[14], data[3]], LOSSES["cross_entropy"], {}, True),
        Pass("mlp and head", [data[5], data[8]], LOSSES["importance_sampling"], {}, True),
        Pass("two of attention", several, LOSSES["cross_entropy"], {}, True),
        Pass("all", [data[21]], LOSSES["importance_sampling"], {}, True),
        Pass("mlp and head", [data[14]], LOSSES["cross_entropy"], {}, False),
        Pass("mlp and head", [data[8], data[21]], LOSSES["importance_sampling"], ENTROPIC, True),
        Pass("two of attention", [data[5]], LOSSES["cross_entropy"], {"temperature": 2.5}, True),
        Pass("all", [masked[0], data[8], masked[1]], LOSSES["importance_sampling"], ENTROPIC, True),
        Pass("two of attention", [masked[2], data[9]], LOSSES["cross_entropy"], {}, True),
    ]


def random_state(adapter, seed=11):
    """An adapter whose B is not zero, so that every gradient shows."""
    generator = np.random.default_rng(seed)
    tensors = {
        name: generator.normal(0, 0.1, adapter.tensors[name].shape).astype(np.float32) for name in adapter.tensors
    }
    return ModelState(Adapter(adapter.base_model, adapter.lora, adapter.target_modules, tensors), None)


def open_model(group, folder, budget=None, dtype="auto"):
    """Ranks with the model; with a `budget` of tokens data go through it in many small micro-batches and chunks."""
    group.call(rank_tasks.open_model, ModelSource(folder.name, str(folder), "cpu", dtype), budget)


def create(group, model_ids=tuple(SPECS)):
    """The adapters as given to the ranks."""
    adapters = {}
    for model_id in model_ids:
        group.call(rank_tasks.call, "create_model", model_id, SPECS[model_id])
        state = random_state(group.call(rank_tasks.call, "export_state", model_id, False)[0].adapter)
        group.call(rank_tasks.call, "import_state", model_id, state)
        adapters[model_id] = state.adapter
    return adapters


class OnRanks:
    """A group as a backend."""

    def __init__(self, group, folder, dtype="auto"):
        open_model(group, folder, budget=24, dtype=dtype)
        self._group = group

    def __getattr__(self, method):
        def call(*arguments, **keywords):
            return self._group.call(rank_tasks.call, method, *arguments, *keywords.values())[0]

        return call


def by_ranks(group, passes):
    """Logprobs of all passes, gradients of all models."""
    results = group.call(rank_tasks.call, "forward_backward", passes)[0]
    for result in results:
        if isinstance(result, Exception):
            raise result
    gradients = {one.model_id: group.call(rank_tasks.gradients, one.model_id)[0] for one in passes if one.backward}
    return Found([array for result in results for array in result.logprobs], _flat(gradients))


def by_transformers(folder, adapters, passes):
    models = {one.model_id: tiny_models.adapted(folder, adapters[one.model_id]) for one in passes}
    logprobs = []
    for one in passes:
        found = [tiny_models.scores(models[one.model_id], datum, one.temperature) for datum in one.data]
        logprobs += [each.detach().numpy() for each, _ in found]
        if one.backward:
            loss_of(one, found).backward()
    with_gradients = {one.model_id for one in passes if one.backward}
    return Found(
        logprobs,
        _flat({n: {k: v.numpy() for k, v in tiny_models.gradients(models[n]).items()} for n in with_gradients}),
    )


def loss_of(one, scores):
    """The sum of the losses of a pass, with a graph, of logprobs and entropies."""
    inputs = [inputs_of(one, datum, entropy) for datum, (_, entropy) in zip(one.data, scores, strict=True)]
    logprobs = [each for each, _ in scores]
    if one.loss.batch:
        return value_of(one.loss.function(logprobs, inputs, one.config))
    return sum(value_of(one.loss.function(*each, one.config)) for each in zip(logprobs, inputs, strict=True))


def inputs_of(one, datum, entropy):
    given = datum.loss_fn_inputs
    read = [each.name for each in one.loss.inputs_of(given) if each.name in given]
    return {name: torch.from_numpy(given[name]) for name in read} | ({"entropy": entropy} if one.wants_entropy else {})


def value_of(returned):
    return getattr(returned, "loss", returned)


def _flat(gradients):
    return {f"{model_id}: {name}": array for model_id, found in gradients.items() for name, array in found.items()}
