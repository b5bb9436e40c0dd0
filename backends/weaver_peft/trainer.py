"""The training backend `peft`: one frozen model, many adapters, passes of all of them packed together.

A pass takes three steps per micro-batch: tokens to hidden states with a graph; hidden states to target logprobs without
one; then each datum's loss on its logprobs, and its gradient back through the output layer and the graph.

For a loss that sees the whole batch there is a round before that, which computes all logprobs without any graph, so
that memory does not grow with the batch. The loss is evaluated on those; its gradients go into the round with graphs.

Shapes: T packed tokens of a micro-batch, H hidden size, K targets per token.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import psutil
import torch

from weaver.backend import Backend, ModelSource, Pass
from weaver.domain import ForwardBackwardResult, LoraSpec, ModelState, OptimParams
from weaver.errors import LossFailed, WeaverError
from weaver.evaluation import PassOutcome, ScoreGradients, evaluate, evaluate_batch, shaped_logprobs, targets_of
from weaver_peft.base_model import BaseModel, load_base_model
from weaver_peft.call import Call, Segment
from weaver_peft.logprobs import Head, LossGradients, Scored, Workspace, head_gradients, target_logprobs
from weaver_peft.micro_batches import Item, Run, micro_batches, packed_tokens, pieces, runs
from weaver_peft.packing import PackedAttention
from weaver_peft.sampling_masks import kept_tokens
from weaver_peft.training_model import Gradients, TrainingModel

MICRO_BATCH_TOKENS = {"cpu": 1024, "cuda": 16384}


def open_backend(source: ModelSource) -> Backend:
    """Load the base model of `source` (shared with a sampler in this process)."""
    return PeftBackend(load_base_model(source))


@dataclass(slots=True)
class _Attempt:
    """What one try at some passes found; nothing of it counts until it is committed."""

    outcomes: list[PassOutcome]
    gradients: dict[str, Gradients] = field(default_factory=dict)
    failed: dict[int, WeaverError] = field(default_factory=dict)
    batches: dict[int, Sequence[ScoreGradients]] = field(default_factory=dict)
    """Of passes whose loss sees the whole batch: what it found, for each datum."""

    def add_gradient(self, model_id: str, name: str, gradient: torch.Tensor) -> None:
        staged = self.gradients.setdefault(model_id, {})
        staged[name] = staged[name].add_(gradient) if name in staged else gradient


class PeftBackend:
    """See `weaver.backend.Backend`."""

    def __init__(self, base: BaseModel) -> None:
        self._base = base
        self._models: dict[str, TrainingModel] = {}
        self._workspace = Workspace(base.head_VH)
        self._budget = MICRO_BATCH_TOKENS[base.device.type]
        self._recompute_above = _tokens_that_fit(base)

    def create_model(self, model_id: str, lora: LoraSpec) -> None:
        self._models[model_id] = TrainingModel(self._base, lora)

    def drop_model(self, model_id: str) -> None:
        self._models.pop(model_id, None)

    def optim_step(self, model_id: str, params: OptimParams) -> Mapping[str, float]:
        return self._models[model_id].step(params)

    def export_state(self, model_id: str, *, optimizer: bool) -> ModelState:
        return self._models[model_id].export(optimizer=optimizer)

    def import_state(self, model_id: str, state: ModelState) -> None:
        self._models[model_id].load(state)

    def close(self) -> None:
        self._models.clear()

    def forward_backward(self, passes: Sequence[Pass]) -> Sequence[ForwardBackwardResult | WeaverError]:
        """Run all passes; when some fail, the others run again without them, as if those had never been there."""
        results: dict[int, ForwardBackwardResult | WeaverError] = {}
        while remaining := [number for number in range(len(passes)) if number not in results]:
            attempt = self._attempt([passes[number] for number in remaining])
            if attempt.failed:
                results |= {remaining[place]: error for place, error in attempt.failed.items()}
                continue
            for model_id, gradients in attempt.gradients.items():
                self._models[model_id].add_gradients(gradients)
            results |= {number: attempt.outcomes[place].result() for place, number in enumerate(remaining)}
        return [results[number] for number in range(len(passes))]

    def _attempt(self, passes: Sequence[Pass]) -> _Attempt:
        attempt = _Attempt([PassOutcome(len(one.data)) for one in passes])
        whole = [number for number, one in enumerate(passes) if one.loss.batch]
        self._evaluate_batches(passes, whole, attempt)
        settled = {number for number in whole if not passes[number].backward}
        for items in micro_batches(passes, self._budget, leaving_out=settled):
            if attempt.failed:
                return attempt
            self._run(passes, items, attempt)
        if attempt.failed:
            return attempt
        for model_id, gradients in attempt.gradients.items():
            if not all(gradient.isfinite().all() for gradient in gradients.values()):
                error = LossFailed(f"the gradient of model {model_id} is not finite; nothing of it was kept")
                attempt.failed |= {
                    n: error for n, one in enumerate(passes) if one.backward and one.model_id == model_id
                }
        return attempt

    def _evaluate_batches(self, passes: Sequence[Pass], whole: Sequence[int], attempt: _Attempt) -> None:
        """Logprobs of all data of the passes numbered `whole`, and then their losses."""
        forward = [replace(one, backward=False) for one in passes]
        for items in micro_batches(forward, self._budget, leaving_out=set(range(len(passes))) - set(whole)):
            self._run(forward, items, attempt)
        for number in whole:
            outcome = attempt.outcomes[number]
            try:
                evaluated = evaluate_batch(passes[number], *outcome.scores(self._base.device))
            except WeaverError as error:
                attempt.failed[number] = error
                continue
            outcome.add_batch(evaluated)
            attempt.batches[number] = evaluated.by_datum

    def _run(self, passes: Sequence[Pass], items: tuple[Item, ...], attempt: _Attempt) -> None:
        """One micro-batch: forward, losses and, where asked, backward."""
        batch, backward = runs(items), items[0].backward
        with torch.set_grad_enabled(backward):
            hidden_TH = self._hidden_states(passes, items, batch)
        gradient_TH = torch.zeros_like(hidden_TH)
        with torch.no_grad():
            for run in batch:
                for piece in pieces(run, self._workspace.chunk_tokens):
                    self._run_head(passes, piece, hidden_TH, gradient_TH, attempt)
        if backward and not attempt.failed:
            self._backward(batch, hidden_TH, gradient_TH, attempt)

    def _run_head(
        self,
        passes: Sequence[Pass],
        piece: Run,
        hidden_TH: torch.Tensor,
        gradient_TH: torch.Tensor,
        attempt: _Attempt,
    ) -> None:
        """Target logprobs, losses and, where asked, the gradient of a piece's hidden states into `gradient_TH`.

        Runs without a graph: what the output layer does to gradients is written out in `weaver_peft.logprobs`.
        """
        targets_TK = torch.cat([targets_of(passes[item.number], item.index) for item in piece.items])
        targets_TK, piece_TH = targets_TK.to(self._base.device), hidden_TH[piece.start : piece.stop]
        pair = self._models[piece.model_id].pairs.get(self._base.head_name)
        head = Head(self._base.head_VH, pair, self._workspace, piece.temperature)
        kept = kept_tokens(passes, piece.items, self._base.device)
        scored = target_logprobs(head, piece_TH, targets_TK, entropy=piece.entropy, kept=kept)
        loss_gradients = _evaluate_piece(passes, piece, scored, attempt)
        if attempt.failed or not piece.items[0].backward:
            return
        found = head_gradients(head, piece_TH, targets_TK, loss_gradients, scored)
        gradient_TH[piece.start : piece.stop] = found.hidden_TH
        if found.a is not None and found.b is not None:
            name = f"base_model.model.{self._base.head_name}"
            attempt.add_gradient(piece.model_id, f"{name}.lora_A.weight", found.a)
            attempt.add_gradient(piece.model_id, f"{name}.lora_B.weight", found.b)

    def _hidden_states(self, passes: Sequence[Pass], items: Sequence[Item], batch: Sequence[Run]) -> torch.Tensor:
        tokens_T, positions_T = packed_tokens(passes, items)
        device = self._base.device
        segments = tuple(Segment(run.start, run.stop, self._models[run.model_id].pairs) for run in batch)
        attention = PackedAttention([item.tokens for item in items], device)
        call = Call(segments, attention, recompute=len(tokens_T) > self._recompute_above)
        return self._base.hidden_states(tokens_T.to(device), positions_T.to(device), call)

    def _backward(
        self, batch: Sequence[Run], hidden_TH: torch.Tensor, gradient_TH: torch.Tensor, attempt: _Attempt
    ) -> None:
        """From the hidden states' gradient to the adapters' in the decoder layers."""
        head = f"base_model.model.{self._base.head_name}."
        owners = [
            (model_id, name, parameter)
            for model_id in dict.fromkeys(run.model_id for run in batch)
            for name, parameter in self._models[model_id].parameters.items()
            if not name.startswith(head)
        ]
        if not owners:
            return
        gradients = torch.autograd.grad(hidden_TH, [parameter for _, _, parameter in owners], gradient_TH)
        for (model_id, name, _), gradient in zip(owners, gradients):
            attempt.add_gradient(model_id, name, gradient)


def _evaluate_piece(passes: Sequence[Pass], piece: Run, scored: Scored, attempt: _Attempt) -> LossGradients:
    """Every datum's loss; returns the gradients by logprobs and entropies, zero where a pass has no backward."""
    gradients = LossGradients.zero(scored.logprobs_TK, scored.entropy_T)
    start = 0
    for item in piece.items:
        one, rows = passes[item.number], slice(start, start + item.tokens)
        start = rows.stop
        logprobs = shaped_logprobs(one, item.index, scored.logprobs_TK[rows])
        entropy_T = None if scored.entropy_T is None else scored.entropy_T[rows]
        try:
            found = _gradients_of(one, item, logprobs, entropy_T, attempt)
        except WeaverError as error:
            attempt.failed.setdefault(item.number, error)
            continue
        gradients.put(rows, *found)
    return gradients


def _gradients_of(
    one: Pass, item: Item, logprobs: torch.Tensor, entropy_T: torch.Tensor | None, attempt: _Attempt
) -> ScoreGradients:
    """Of a datum; None where there is no backward, or the batch is not evaluated yet."""
    outcome = attempt.outcomes[item.number]
    outcome.add_logprobs(item.index, logprobs, entropy_T)
    if one.loss.batch:
        return attempt.batches[item.number][item.index] if item.number in attempt.batches else (None, None)
    evaluated = evaluate(one, item.index, logprobs, entropy_T)
    outcome.add(item.index, evaluated)
    return evaluated.gradient, evaluated.entropy_gradient


def _tokens_that_fit(base: BaseModel) -> int:
    """How many tokens' activations fit in half of the free memory; above, layers are computed twice instead.

    Per token and layer a decoder keeps about 12 vectors of the hidden and 5 of the intermediate size.
    """
    config = base.model.config
    width = 12 * config.hidden_size + 5 * getattr(config, "intermediate_size", 4 * config.hidden_size)
    bytes_per_token = config.num_hidden_layers * width * 4
    return max(1, _free_memory(base.device) // 2 // bytes_per_token)


def _free_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)
