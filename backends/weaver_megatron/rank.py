"""What runs inside every rank: the contract `weaver.backend.Backend`, called by all ranks alike.

Every rank calls the same method with the same arguments in the same order. Results are complete on rank 0; errors of
the user's making are raised by all ranks, before anything changes.

Shapes: T packed tokens of a micro-batch, L those of this rank between layers, H hidden size, K targets per token.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import psutil
import torch
import torch.distributed as dist
from weaver_peft.logprobs import LossGradients
from weaver_peft.micro_batches import Run, pieces, runs
from weaver_peft.sampling_masks import kept_tokens

from weaver.backend import Pass
from weaver.domain import ForwardBackwardResult, LoraSpec, ModelSource, ModelState, OptimParams
from weaver.errors import InvalidInput, LossFailed, WeaverError
from weaver.evaluation import PassOutcome, ScoreGradients, evaluate, evaluate_batch, shaped_logprobs, targets_of
from weaver_megatron.adapter import PREFIX, TrainingModel
from weaver_megatron.architecture import check_layout, read_architecture
from weaver_megatron.attempt import Attempt, exchange_failures, gather_outcomes
from weaver_megatron.base_weights import without_base_weights
from weaver_megatron.collectives import gathered
from weaver_megatron.conversion import load_weights
from weaver_megatron.layout import Layout
from weaver_megatron.logprobs import Head, Scored, head_gradients, target_logprobs
from weaver_megatron.model import ParallelModel, build_model
from weaver_megatron.ranks import Ranks, join
from weaver_megatron.rounds import MicroBatch, Prepared, Round, deal, prepare
from weaver_megatron.sites import sites_of

MICRO_BATCH_TOKENS = {"cpu": 1024, "cuda": 16384}
HEAD = "lm_head"


class RankBackend:
    """One rank. torch.distributed is initialised, with one process for each rank of the layout."""

    def __init__(self, source: ModelSource, layout: Layout) -> None:
        architecture = read_architecture(source)
        check_layout(architecture, layout)
        device = _device(source.device)
        self._source, self._ranks = source, join(layout, device)
        self._model = build_model(architecture, self._ranks)
        load_weights(self._model, source)
        self._model.gpt.to(device)
        self._model.rotary.to(device)
        self._sites = sites_of(architecture, self._ranks)
        self._models: dict[str, TrainingModel] = {}
        self._budget = MICRO_BATCH_TOKENS[device.type]
        self._recompute_above = 0 if layout.recompute else _tokens_that_fit(self._model)

    def create_model(self, model_id: str, lora: LoraSpec) -> None:
        self._models[model_id] = TrainingModel(self._model.architecture.facts, self._sites, self._ranks, lora)

    def drop_model(self, model_id: str) -> None:
        self._models.pop(model_id, None)

    def optim_step(self, model_id: str, params: OptimParams) -> Mapping[str, float]:
        return self._models[model_id].step(params)

    def export_state(self, model_id: str, *, optimizer: bool) -> ModelState:
        """Without tensors on all ranks but the first."""
        return self._models[model_id].export(optimizer=optimizer)

    def import_state(self, model_id: str, state: ModelState) -> None:
        adapter = without_base_weights(state.adapter, self._source)
        self._models[model_id].load(replace(state, adapter=adapter))

    def close(self) -> None:
        self._models.clear()

    def forward_backward(self, passes: Sequence[Pass]) -> Sequence[ForwardBackwardResult | WeaverError]:
        """Run all passes; when some fail, the others run again without them. All ranks return the same errors; results
        of all ranks but the first are empty."""
        results: dict[int, ForwardBackwardResult | WeaverError] = {}
        while remaining := [number for number in range(len(passes)) if number not in results]:
            attempt = self._attempt([passes[number] for number in remaining])
            if attempt.failed:
                results |= {remaining[place]: error for place, error in attempt.failed.items()}
                continue
            for model_id, gradients in attempt.gradients.items():
                self._models[model_id].add_gradients(gradients)
            outcomes = gather_outcomes(self._ranks, attempt.outcomes)
            for place, number in enumerate(remaining):
                results[number] = ForwardBackwardResult((), {}) if outcomes is None else outcomes[place].result()
        return [results[number] for number in range(len(passes))]

    def _attempt(self, passes: Sequence[Pass]) -> Attempt:
        attempt = Attempt([PassOutcome(len(one.data)) for one in passes])
        whole = [number for number, one in enumerate(passes) if one.loss.batch]
        if whole:
            self._evaluate_batches(passes, whole, attempt)
        settled = {number for number in whole if not passes[number].backward or number in attempt.failed}
        for one in deal(passes, self._budget, self._ranks.dp, settled):
            self._run(passes, one, attempt)
        broken = exchange_failures(self._ranks, attempt)
        if not attempt.failed:
            attempt.failed = {
                number: LossFailed(f"the gradient of model {one.model_id} is not finite; nothing of it was kept")
                for number, one in enumerate(passes)
                if one.backward and one.model_id in broken
            }
        return attempt

    def _evaluate_batches(self, passes: Sequence[Pass], whole: Sequence[int], attempt: Attempt) -> None:
        """Logprobs of all data of the passes numbered `whole`; then the first rank calls their losses and tells all."""
        forward = [replace(one, backward=False) for one in passes]
        for one in deal(forward, self._budget, self._ranks.dp, set(range(len(passes))) - set(whole)):
            self._run(forward, one, attempt)
        found = gather_outcomes(self._ranks, attempt.outcomes)
        told: list[tuple[dict[int, WeaverError], dict[int, Sequence[ScoreGradients]]] | None] = [None]
        if found is not None:
            for number in whole:
                self._evaluate_batch(passes[number], number, found[number], attempt)
            told = [(attempt.failed, attempt.batches)]
        dist.broadcast_object_list(told, src=0, group=self._ranks.control)
        assert told[0] is not None
        attempt.failed, attempt.batches = told[0]

    def _evaluate_batch(self, one: Pass, number: int, found: PassOutcome, attempt: Attempt) -> None:
        try:
            evaluated = evaluate_batch(one, *found.scores(self._ranks.device))
        except WeaverError as error:
            attempt.failed[number] = error
            return
        attempt.outcomes[number].logprobs |= found.logprobs
        attempt.outcomes[number].add_batch(evaluated)
        attempt.batches[number] = [(_on_cpu(first), _on_cpu(second)) for first, second in evaluated.by_datum]

    def _run(self, passes: Sequence[Pass], one: Round, attempt: Attempt) -> None:
        """This rank's micro-batch of a round: forward, losses and, where asked, backward."""
        prepared = prepare(self._model, self._models, passes, one, self._recompute_above)
        if prepared is None:
            return
        with torch.set_grad_enabled(one.backward):
            hidden_LH = self._model.hidden_states(prepared.tokens_T, prepared.call)
        sequence = self._ranks.layout.sequence_parallel
        with torch.no_grad():
            hidden_TH = gathered(hidden_LH, self._ranks.tensor) if sequence else hidden_LH.detach()
            gradient_TH = torch.zeros_like(hidden_TH)
            self._run_head(passes, one.batches[self._ranks.dp_rank], hidden_TH, gradient_TH, attempt)
        if one.backward:
            start = self._ranks.tp_rank * len(hidden_LH) if sequence else 0
            self._backward(prepared, hidden_LH, gradient_TH[start : start + len(hidden_LH)], attempt)

    def _run_head(
        self,
        passes: Sequence[Pass],
        batch: MicroBatch,
        hidden_TH: torch.Tensor,
        gradient_TH: torch.Tensor,
        attempt: Attempt,
    ) -> None:
        """Target logprobs, losses and, where asked, the gradient of the hidden states into `gradient_TH`."""
        for run in runs(batch):
            head = self._head(run)
            for piece in pieces(run, head.chunk_tokens):
                targets_TK = torch.cat([targets_of(passes[item.number], item.index) for item in piece.items])
                targets_TK, piece_TH = targets_TK.to(self._ranks.device), hidden_TH[piece.start : piece.stop]
                kept = kept_tokens(passes, piece.items, self._ranks.device)
                scored = target_logprobs(head, piece_TH, targets_TK, entropy=piece.entropy, kept=kept)
                loss_gradients = self._evaluate(passes, piece, scored, attempt)
                if not piece.items[0].backward:
                    continue
                found = head_gradients(head, piece_TH, targets_TK, loss_gradients, scored)
                gradient_TH[piece.start : piece.stop] = found.hidden_TH
                if found.a is not None and found.b is not None:
                    attempt.add_gradient(run.model_id, f"{PREFIX}{HEAD}.lora_A.weight", found.a)
                    attempt.add_gradient(run.model_id, f"{PREFIX}{HEAD}.lora_B.weight", found.b)

    def _evaluate(self, passes: Sequence[Pass], piece: Run, scored: Scored, attempt: Attempt) -> LossGradients:
        """The loss's gradients by logprobs and entropies, zero where there are none. A loss may draw numbers or keep
        count: the first rank of the tensor-parallel group alone calls it, and the others take what it found."""
        gradients = LossGradients.zero(scored.logprobs_TK, scored.entropy_T)
        if self._ranks.tp_rank == 0:
            evaluate_piece(passes, piece, scored, gradients, attempt)
        if self._ranks.tp > 1 and piece.items[0].backward:
            for each in (gradients.logprobs_TK, gradients.entropy_T):
                if each is not None:
                    dist.broadcast(each, src=self._ranks.dp_rank * self._ranks.tp, group=self._ranks.tensor)
        return gradients

    def _backward(
        self, prepared: Prepared, hidden_LH: torch.Tensor, gradient_LH: torch.Tensor, attempt: Attempt
    ) -> None:
        """From the hidden states' gradient to those of the adapters in the layers."""
        owners = [
            (model_id, name, parameter)
            for model_id in prepared.model_ids
            for name, parameter in self._models[model_id].parameters.items()
            if not name.startswith(f"{PREFIX}{HEAD}.")
        ]
        inputs = [parameter for _, _, parameter in owners]
        if len(self._ranks.data_together) > 1:
            inputs.append(prepared.call.anchor)
        if not inputs:
            return
        gradients = torch.autograd.grad(hidden_LH, inputs, gradient_LH, allow_unused=True)
        for (model_id, name, _), gradient in zip(owners, gradients):
            if gradient is not None:
                attempt.add_gradient(model_id, name, gradient)

    def _head(self, run: Run) -> Head:
        weight_VH, ranks = self._model.head_VH, self._ranks
        first = ranks.tp_rank * len(weight_VH)
        real = min(max(self._model.architecture.vocabulary - first, 0), len(weight_VH))
        return Head(weight_VH, self._models[run.model_id].pairs.get(HEAD), first, real, ranks.tensor, run.temperature)


def evaluate_piece(
    passes: Sequence[Pass], piece: Run, scored: Scored, gradients: LossGradients, attempt: Attempt
) -> None:
    """Every datum's loss; its gradients go into `gradients`."""
    start = 0
    for item in piece.items:
        one, rows, outcome = passes[item.number], slice(start, start + item.tokens), attempt.outcomes[item.number]
        start = rows.stop
        logprobs = shaped_logprobs(one, item.index, scored.logprobs_TK[rows])
        entropy_T = None if scored.entropy_T is None else scored.entropy_T[rows]
        outcome.add_logprobs(item.index, logprobs, entropy_T)
        if one.loss.batch:
            if item.number in attempt.batches:
                gradients.put(rows, *attempt.batches[item.number][item.index])
            continue
        try:
            evaluated = evaluate(one, item.index, logprobs, entropy_T)
        except WeaverError as error:
            attempt.failed.setdefault(item.number, error)
            continue
        outcome.add(item.index, evaluated)
        gradients.put(rows, evaluated.gradient, evaluated.entropy_gradient)


def _on_cpu(tensor: torch.Tensor | None) -> torch.Tensor | None:
    return None if tensor is None else tensor.cpu()


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise InvalidInput("device 'cuda' was asked for and torch finds no CUDA device; use --device cpu")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def _tokens_that_fit(model: ParallelModel) -> int:
    """How many tokens' activations fit in half of the free memory; above, layers are computed twice instead.

    Per token and layer a decoder keeps about 12 vectors of the hidden and 5 of the intermediate size. Recomputing talks
    to other ranks, so all take the number of the one with the least.
    """
    architecture, ranks = model.architecture, model.ranks
    chosen = architecture.experts_per_token * architecture.expert_intermediate
    width = 12 * architecture.hidden + 5 * max(architecture.intermediate, chosen)
    fit = torch.tensor(max(1, _free_memory(ranks) // 2 // (architecture.layers * width * 4)), device=ranks.device)
    dist.all_reduce(fit, op=dist.ReduceOp.MIN)
    return int(fit)


def _free_memory(ranks: Ranks) -> int:
    if ranks.device.type == "cuda":
        return int(torch.cuda.mem_get_info(ranks.device)[0])
    return int(psutil.virtual_memory().available) // ranks.layout.world
