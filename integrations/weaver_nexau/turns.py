"""What an agent said, as data to train on: exactly the tokens that were sampled, and exactly their logprobs."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

LossInputs = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Turn:
    """One answer of the model: what it was shown, what it said, and how likely each token was when it was drawn."""

    prompt: tuple[int, ...]
    response: tuple[int, ...]
    logprobs: tuple[float, ...]

    @classmethod
    def of(cls, nexrl_train: Mapping[str, Sequence[Any]]) -> "Turn":
        """What an answer's `nexrl_train` says. Raises ValueError where tokens and logprobs are not equally many."""
        turn = cls(
            tuple(map(int, nexrl_train["prompt_tokens"])),
            tuple(map(int, nexrl_train["response_tokens"])),
            tuple(map(float, nexrl_train["response_logprobs"])),
        )
        if len(turn.response) != len(turn.logprobs):
            raise ValueError(
                f"nexrl_train has {len(turn.response)} response_tokens and {len(turn.logprobs)} response_logprobs: "
                "every token needs its logprob"
            )
        return turn


@dataclass(frozen=True)
class Trace:
    """Tokens in a row. `sampled` is 1 for those that the model drew and 0 for the others, whose logprobs are 0."""

    tokens: tuple[int, ...]
    sampled: tuple[int, ...]
    logprobs: tuple[float, ...]

    @classmethod
    def of(cls, turn: Turn) -> "Trace":
        return cls((), (), ())._then(turn)

    def _then(self, turn: Turn) -> "Trace":
        """With what is new in this turn behind; its prompt begins with all the tokens there are."""
        shown, said = turn.prompt[len(self.tokens) :], turn.response
        return Trace(
            self.tokens + shown + said,
            self.sampled + (0,) * len(shown) + (1,) * len(said),
            self.logprobs + (0.0,) * len(shown) + turn.logprobs,
        )


def traces(turns: Iterable[Turn]) -> list[Trace]:
    """As few traces as hold these turns: a turn joins the one before whose tokens its prompt begins with.

    Where a chat template does not give an earlier answer back token for token, a new trace begins: nothing is
    ever trained on tokens that were not sampled.
    """
    made: list[Trace] = []
    for turn in turns:
        if made and turn.prompt[: len(made[-1].tokens)] == made[-1].tokens:
            made[-1] = made[-1]._then(turn)
        else:
            made.append(Trace.of(turn))
    return made


def loss_inputs(trace: Trace, advantage: float) -> tuple[list[int], LossInputs]:
    """The tokens that go in, and what `importance_sampling` reads of those that come out: T - 1 of each."""
    sampled = np.array(trace.sampled[1:], np.float32)
    return list(trace.tokens[:-1]), {
        "target_tokens": np.array(trace.tokens[1:], np.int64),
        "logprobs": np.array(trace.logprobs[1:], np.float32),
        "advantages": np.float32(advantage) * sampled,
        "loss_mask": sampled,
    }


def group_advantages(rewards: Sequence[float]) -> list[float]:
    """How much better than its group's mean each attempt did, in standard deviations; all 0 where all did alike."""
    spread = float(np.std(rewards))
    return [0.0 if spread == 0 else (reward - float(np.mean(rewards))) / spread for reward in rewards]
