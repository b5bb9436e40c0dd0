"""A mixture of experts whose experts lie on several ranks, each token using its own adapter in each of its experts.

megatron-core's mixture shuffles tokens out of sight, and with them which adapter each uses; this one keeps both. Every
rank sees the tokens of all ranks that hold other experts, computes those that chose an expert of its own, and the sum
of all goes back.

Shapes: T tokens that meet, H hidden size, E experts of this rank, F features of an expert on this rank, C tokens that
chose one expert, N choices per token.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from weaver_megatron.architecture import Architecture
from weaver_megatron.call import Segment, current_call
from weaver_megatron.collectives import gather_tokens, scatter_tokens, sum_gradients, sum_parts
from weaver_megatron.linears import is_adapted, lift, lower
from weaver_megatron.ranks import Ranks


class ExpertMixture(nn.Module):
    """The experts `first` to `first + E` of a layer, or this rank's part of each."""

    def __init__(self, architecture: Architecture, ranks: Ranks, number: int) -> None:
        super().__init__()
        self._ranks, self._choices = ranks, architecture.experts_per_token
        self._experts, self._normalised = architecture.experts, architecture.normalised_routing
        count, width = architecture.experts // ranks.layout.ep, architecture.expert_intermediate
        width //= ranks.layout.expert_tp
        self.first, self._name = ranks.expert_part * count, f"model.layers.{number}.mlp.experts"
        hidden, dtype = architecture.hidden, architecture.dtype
        self.router_weight = nn.Parameter(torch.empty(architecture.experts, hidden, dtype=dtype))
        self.gate_up_weight = nn.Parameter(torch.empty(count, 2 * width, hidden, dtype=dtype))
        self.down_weight = nn.Parameter(torch.empty(count, hidden, width, dtype=dtype))

    def forward(self, hidden: torch.Tensor, **_: Any) -> tuple[torch.Tensor, None]:
        """(T, 1, H), of this rank alone under sequence parallelism."""
        ranks, call, hidden_TH = self._ranks, current_call(), hidden[:, 0]
        sequence = ranks.layout.sequence_parallel
        hidden_TH = (gather_tokens if sequence else sum_gradients)(hidden_TH, ranks.tensor)
        tokens = len(hidden_TH)
        if len(ranks.data_together) > 1:
            padded_TH = F.pad(hidden_TH + call.anchor, (0, 0, 0, call.mixture_tokens - tokens))
            hidden_TH = gather_tokens(padded_TH, ranks.expert_tokens)
        output_TH = self._computed(hidden_TH, call.mixture_segments)
        output_TH = scatter_tokens(output_TH, ranks.expert_tokens)[:tokens]
        output_TH = (scatter_tokens if sequence else sum_parts)(output_TH, ranks.tensor)
        return output_TH[:, None], None

    def _computed(self, hidden_TH: torch.Tensor, segments: Sequence[Segment]) -> torch.Tensor:
        """This rank's summand."""
        share_TN, chosen_TN = self._routed(hidden_TH)
        order, counts = _sorted(chosen_TN, segments, self._experts)
        start, tokens, results = sum(map(sum, counts[: self.first])), [], []
        for place in range(len(self.gate_up_weight)):
            expert = self.first + place
            mine = _segments(segments, counts[expert])
            picked_C = order[start : start + mine[-1].stop]
            start += len(picked_C)
            tokens_C = picked_C // self._choices
            result_CH = self._expert(place, f"{self._name}.{expert}", hidden_TH[tokens_C], mine)
            tokens.append(tokens_C)
            results.append(result_CH * share_TN.flatten()[picked_C, None])
        return torch.zeros_like(hidden_TH).index_add(0, torch.cat(tokens), torch.cat(results))

    def _routed(self, hidden_TH: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Each token's share in the experts it chose, and their numbers, (T, N) each."""
        probabilities = torch.softmax(F.linear(hidden_TH, self.router_weight), dim=-1, dtype=torch.float)
        share_TN, chosen_TN = torch.topk(probabilities, self._choices, dim=-1)
        if self._normalised:
            share_TN = share_TN / share_TN.sum(-1, keepdim=True)
        return share_TN.to(hidden_TH.dtype), chosen_TN

    def _expert(self, place: int, name: str, input_CH: torch.Tensor, segments: Sequence[Segment]) -> torch.Tensor:
        inner, outer = [f"{name}.gate_proj", f"{name}.up_proj"], f"{name}.down_proj"
        gate_up = F.linear(input_CH, self.gate_up_weight[place])
        if is_adapted(segments, inner):
            lowered, width = lower(input_CH, segments, inner), gate_up.shape[1] // 2
            updates = [lift(lowered[:, n], segments, each, width) for n, each in enumerate(inner)]
            gate_up = gate_up + torch.cat(updates, dim=1).to(gate_up.dtype)
        gate, up = gate_up.chunk(2, dim=1)
        middle_CF = F.silu(gate) * up
        output_CH = F.linear(middle_CF, self.down_weight[place])
        if is_adapted(segments, [outer]):
            lowered = lower(middle_CF, segments, [outer])[:, 0]
            output_CH = output_CH + lift(lowered, segments, outer, output_CH.shape[1]).to(output_CH.dtype)
        return output_CH


def _sorted(chosen_TN: torch.Tensor, segments: Sequence[Segment], experts: int) -> tuple[torch.Tensor, list[list[int]]]:
    """The T · N choices in the order of experts, each expert's in the order of tokens; and how many there are of each
    expert and segment. One word from the device for all experts."""
    lengths = torch.tensor([one.stop - one.start for one in segments])
    owner_T = torch.arange(len(segments)).repeat_interleave(lengths).to(chosen_TN.device)
    key = (chosen_TN * len(segments) + owner_T[:, None]).flatten()
    counts = torch.bincount(key, minlength=experts * len(segments)).view(experts, len(segments))
    return key.argsort(stable=True), counts.tolist()


def _segments(segments: Sequence[Segment], counts: Sequence[int]) -> list[Segment]:
    """Of the tokens that chose one expert; a segment of which none did stays, empty."""
    stops = list(accumulate(counts))
    return [Segment(start, stop, one.weights) for start, stop, one in zip([0, *stops], stops, segments)]
