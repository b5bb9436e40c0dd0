"""Where checks run their experiments: a server by its URL, seen through the SDK.

A server shows no weights and no gradients, but it shows logprobs. So a check runs two recipes on two models that
begin the same, and compares the logprobs of a few probe texts afterwards: "weights 2 w with half the rate" must come
out as "weights w", whatever the model is. How far the probes moved is the yardstick, so nothing depends on the
model's size or vocabulary. How far the probes move when a step's rate is changed by a thousandth tells how coarsely a
server rounds: with weights in bfloat16 less can be told than in float32.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import count
from typing import Any

import httpx
import numpy as np
import tinker

from weaver.conformance.checks import Failed, Skipped, require
from weaver.conformance.recipes import Array, DimuonStep, Example, Operation, Pass, Recipe, Step, passes, plain, text

WAIT_SECONDS = 180.0
RANK, SEED = 8, 11
SAME = 0.05
"""Two things are the same when they differ by less than this share of the change that is being looked at."""
SMALLEST_CHANGE, LARGEST_CHANGE = 0.5, 2.0
"""How far (in nats) a step shall move the probes: well above rounding, and not so far that the model breaks."""
VISIBLE = 0.05
"""A change or a difference below this shows nothing."""
LARGEST_NOISE, LARGEST_ROUNDING = 0.01, 0.1
"""More is not believed: a server whose answers vary for another reason shall not pass for one that rounds."""

A, B, UNSEEN = text(9, 1), text(6, 2), text(5, 3)
PROBES = (A, B, UNSEEN)


class Lab:
    """One server and one of its models."""

    def __init__(self, url: str, api_key: str, model: str) -> None:
        self.url, self.api_key, self.model = url.rstrip("/"), api_key, model
        self._outcomes: dict[tuple[Recipe, int], Array] = {}
        self._names = count()

    # The SDK

    @contextmanager
    def session(self, url: str | None = None) -> Iterator["Session"]:
        """Models made in a session are freed when it ends."""
        with tinker.ServiceClient(base_url=url or self.url, api_key=self.api_key) as client:
            yield Session(client, self.model)

    def post(self, path: str, body: dict[str, Any]) -> httpx.Response:
        """A request without the SDK, for what it cannot say or does not show."""
        return httpx.post(
            f"{self.url}/api/v1/{path}", json=body, headers={"X-API-Key": self.api_key}, timeout=WAIT_SECONDS
        )

    def rest(self) -> tinker.RestClient:
        """The client for what is kept: runs, checkpoints and sessions."""
        return tinker.RestClient(base_url=self.url, api_key=self.api_key)

    def new_name(self) -> str:
        """A checkpoint's name that no other check uses."""
        return f"conformance-{next(self._names)}"

    # Experiments

    def after(self, *recipe: Operation, seed: int = SEED) -> Array:
        """The probes' logprobs once a fresh model went through the recipe; each recipe is run once."""
        if (recipe, seed) not in self._outcomes:
            with self.session() as session:
                dimuon = any(isinstance(operation, DimuonStep) for operation in recipe)
                model = session.model(seed, **({"optimizer": tinker.DimuonOptimizerConfig()} if dimuon else {}))
                run(model, recipe)
                self._outcomes[recipe, seed] = look(model)
        return self._outcomes[recipe, seed]

    @cached_property
    def start(self) -> Array:
        """The probes' logprobs on a fresh model."""
        return self.after()

    @cached_property
    def noise(self) -> float:
        """How far logprobs of the same weights are apart when they are asked for again."""
        with self.session() as session:
            model = session.model()
            apart = [distance(look(model), self.start) for _ in range(3)]
        return min(LARGEST_NOISE, max(1e-6, *apart))

    @cached_property
    def rounding(self) -> float:
        """How far logprobs are apart of weights that differ by a thousandth of a step."""
        one = self.after(passes(A), plain(self.rate))
        others = [self.after(passes(A), plain(self.rate * factor)) for factor in (0.998, 0.999, 1.001)]
        return min(LARGEST_ROUNDING, max(1e-6, *(distance(other, one) for other in others)))

    @cached_property
    def rate(self) -> float:
        """A rate at which one plain step on A moves the probes by a good deal."""
        return self._calibrated(lambda rate: self.after(passes(A), plain(rate)), 1e-3)

    @cached_property
    def sign_rate(self) -> float:
        """The same for a step of AdamW whose eps is tiny: every weight moves by the learning rate."""
        return self._calibrated(lambda rate: self.after(passes(A), Step(rate, eps=1e-12)), 1e-4)

    @cached_property
    def dimuon_rate(self) -> float:
        """The same for a step of Dimuon, whose size is the rate's and not the gradient's."""
        return self._calibrated(lambda rate: self.after(passes(A), DimuonStep(rate)), 1e-2)

    def _calibrated(self, outcome: Any, rate: float) -> float:
        for _ in range(12):
            change = self.change(outcome(rate))
            if SMALLEST_CHANGE <= change <= LARGEST_CHANGE:
                return rate
            rate *= float(np.clip(1.0 / max(change, 1e-9), 0.1, 100.0))
        raise Failed(f"no learning rate moves the logprobs by about 1: {rate:.1e} moves them by {change:.1e}")

    def slope(self, step: Step) -> float:
        """By how much a step on A lowers its loss, from a step forth and one back: that cancels the curvature."""
        part = slice(0, len(A.tokens))
        ends = [self.after(passes(A.weighted(sign)), step)[part] for sign in (1.0, -1.0)]
        return float((A.weights * (ends[0] - ends[1])).sum()) / 2

    @cached_property
    def small_rate(self) -> float:
        """A rate so small that a plain step on A gains rate |g|^2. Raises Skipped where rounding hides the gain."""
        small = self.rate / 16
        gain, noise = self.slope(plain(small)), self.rounding * float(np.linalg.norm(A.weights))
        require(gain > -noise, f"a small step on a text raises its loss by {-gain:.3g}")
        if gain < 20 * noise and self.rounding > 5e-3:
            raise Skipped(f"this server rounds too coarsely: its logprobs are known to {self.rounding:.2g} only")
        return small

    # Judgement

    def change(self, found: Array) -> float:
        """How far the probes are from where a fresh model has them."""
        return distance(found, self.start)

    def same(self, found: Array, expected: Array, what: str, *, than: Array | None = None) -> None:
        """`found` must be `expected`, measured by how far `expected` (or `than`) is from the start."""
        moved, difference = self.change(expected if than is None else than), distance(found, expected)
        require(moved >= VISIBLE, f"{what}: logprobs moved by {moved:.1e} only, which shows nothing")
        allowed = SAME * moved + 3 * self.rounding
        require(
            difference <= allowed, f"{what}: logprobs differ by {difference:.3g} where the change itself is {moved:.3g}"
        )

    def unchanged(self, found: Array, expected: Array, what: str) -> None:
        """`found` must be `expected`: nothing has touched these weights."""
        difference = distance(found, expected)
        require(difference <= 4 * self.noise + self.rounding, f"{what}: logprobs changed by {difference:.3g}")

    def differ(self, found: Array, other: Array, what: str) -> None:
        """The two must not be the same."""
        difference = distance(found, other)
        require(difference > VISIBLE, f"{what}: logprobs differ by {difference:.1e} only")

    def agree(self, one: Any, other: Any, what: str, allowed: float = 0.05) -> None:
        """Two ways to compute the same logprobs, which may round differently."""
        pair = np.asarray(one, float), np.asarray(other, float)
        require(pair[0].shape == pair[1].shape, f"{what}: {pair[0].shape} logprobs against {pair[1].shape}")
        difference = distance(*pair)
        require(difference <= allowed + self.rounding, f"{what}: logprobs differ by {difference:.3g}")


def distance(one: Any, other: Any) -> float:
    """The root of the mean square difference of logprobs, in nats."""
    return float(np.sqrt(np.mean(np.square(np.asarray(one, float) - np.asarray(other, float)))))


class Session:
    """A session's clients, waited for."""

    def __init__(self, client: tinker.ServiceClient, base_model: str) -> None:
        self.client, self.base_model = client, base_model

    def model(self, seed: int = SEED, **options: Any) -> tinker.TrainingClient:
        """A fresh adapter."""
        return waited(self.client.create_lora_training_client(self.base_model, rank=RANK, seed=seed, **options))

    def resumed(self, path: str, *, optimizer: bool = False) -> tinker.TrainingClient:
        """A new model from a saved state."""
        if optimizer:
            return waited(self.client.create_training_client_from_state_with_optimizer(path))
        return waited(self.client.create_training_client_from_state(path))

    def sampler(self, path: str | None = None) -> tinker.SamplingClient:
        """From saved weights, or from the base model."""
        if path is None:
            return waited(self.client.create_sampling_client(base_model=self.base_model))
        return waited(self.client.create_sampling_client(model_path=path))


def waited(future: Any) -> Any:
    """The result of any of the SDK's futures; what older SDKs gave at once, as it is."""
    return future.result(timeout=WAIT_SECONDS) if hasattr(future, "result") else future


def submitted(model: tinker.TrainingClient, operation: Operation) -> Any:
    """The future of an operation that is not waited for."""
    if isinstance(operation, Step):
        return model.optim_step(adam_params=operation.params())
    if isinstance(operation, DimuonStep):
        return model.optim_step(operation.params())
    call = model.forward_backward if operation.backward else model.forward
    data = [example.datum() for example in operation.data]
    return call(data, operation.loss, dict(operation.config) or None)  # type: ignore[arg-type]


def run(model: tinker.TrainingClient, recipe: Sequence[Operation]) -> list[Any]:
    """Submit everything, then wait for all."""
    return [waited(future) for future in [submitted(model, operation) for operation in recipe]]


def look(model: tinker.TrainingClient, probes: Sequence[Example] = PROBES) -> Array:
    """The logprobs of the probes' targets, one after the other."""
    return np.concatenate(forward(model, probes))


def forward(model: tinker.TrainingClient, data: Sequence[Example]) -> list[Array]:
    """Each datum's target logprobs, without gradients."""
    return logprobs_of(run(model, [Pass(tuple(data), backward=False)])[0])


def logprobs_of(output: tinker.ForwardBackwardOutput) -> list[Array]:
    return [one["logprobs"].to_numpy().astype(float) for one in output.loss_fn_outputs]


def snapshot(model: tinker.TrainingClient) -> tinker.SamplingClient:
    """A sampler of the model's weights of this moment."""
    return waited(model.save_weights_and_get_sampling_client())


def scores(sampler: tinker.SamplingClient, tokens: Sequence[int]) -> list[float | None]:
    """The sampler's logprobs of a prompt."""
    return list(waited(sampler.compute_logprobs(tinker.ModelInput.from_ints(list(tokens)))))


def probe_scores(sampler: tinker.SamplingClient) -> Array:
    """The sampler's logprobs of the probes' texts, in the order of `look`; the first token of a text has none."""
    found = [one for probe in PROBES for one in scores(sampler, probe.whole) if one is not None]
    return np.array(found, float)
