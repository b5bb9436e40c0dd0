"""How a model is spread over ranks: numbers only, so that a server can check them before any rank starts."""

from dataclasses import dataclass
from typing import Final

from weaver.errors import InvalidInput

PROCESS_GROUPS: Final = ("auto", "gloo", "nccl")


@dataclass(frozen=True, slots=True)
class Layout:
    """`tp` ranks share every layer, `dp` such groups share the data, `ep` parts hold the experts of a mixture.

    Ranks are numbered tensor-parallel neighbours first: rank = data rank · tp + tensor rank. Experts take no ranks of
    their own: `ep` divides `tp`, or it is a multiple of `tp` that divides `tp · dp`.
    `sequence_parallel` splits what lies between the layers' products by tokens; `recompute` keeps no activations
    inside layers. `process_group` "auto" is nccl on CUDA devices and gloo elsewhere.
    """

    tp: int = 1
    dp: int = 1
    ep: int = 1
    sequence_parallel: bool = False
    process_group: str = "auto"
    recompute: bool = False

    def __post_init__(self) -> None:
        """Raises InvalidInput naming the number that does not fit the others."""
        for name, value in (("tp", self.tp), ("dp", self.dp), ("ep", self.ep)):
            if value < 1:
                raise InvalidInput(f"{name} is {value}; it must be at least 1")
        if self.tp % self.ep and (self.ep % self.tp or (self.tp * self.dp) % self.ep):
            raise InvalidInput(
                f"ep is {self.ep}; experts are split over the ranks there are, so with tp {self.tp} and dp {self.dp} "
                f"it must divide {self.tp}, or be a multiple of {self.tp} that divides {self.tp * self.dp}"
            )
        if self.sequence_parallel and self.tp == 1:
            raise InvalidInput("sequence_parallel splits tokens over the ranks of tp, which is 1; use tp of at least 2")
        if self.process_group not in PROCESS_GROUPS:
            raise InvalidInput(f"process_group {self.process_group!r} is none of {', '.join(PROCESS_GROUPS)}")

    @property
    def world(self) -> int:
        """How many ranks there are."""
        return self.tp * self.dp

    @property
    def expert_tp(self) -> int:
        """How many ranks share one expert."""
        return max(1, self.tp // self.ep)
