"""Bad input is refused as the user's mistake, by the name of what is wrong, and the next call works."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import tinker

from weaver.conformance.checks import Failed, require
from weaver.conformance.lab import A, B, Lab, look, run, submitted, waited
from weaver.conformance.recipes import Example, Pass, Step, passes, plain

GROUP = "errors"

BEYOND = 2**30
"""A token id that no vocabulary has."""

REFUSALS = (400, 404, 422)
Call = Callable[[tinker.TrainingClient], Any]


def _refuses(lab: Lab, call: Call, *names: str) -> None:
    """The call fails as a user's mistake with one of `names` in its sentence; a pass and a step then work as ever."""
    with lab.session() as session:
        model = session.model()
        message = refusal(lambda: call(model))
        require(
            any(name in message for name in names),
            f"the refusal names none of {', '.join(map(repr, names))}: {message[:300]}",
        )
        run(model, [passes(A), plain(lab.rate)])
        found = look(model)
    lab.same(found, lab.after(passes(A), plain(lab.rate)), "a pass and a step after the refused call")


def refusal(call: Callable[[], Any]) -> str:
    """What the user is told; Failed where the call is accepted, or refused as anything but the user's mistake."""
    try:
        waited(call())
    except tinker.APIStatusError as error:
        require(error.status_code in REFUSALS, f"it was answered with status {error.status_code}: {error}")
        return str(error)
    except tinker.RequestFailedError as error:
        require(str(error.category) == "user", f"its category is {error.category!s}, not user: {error}")
        return str(error)
    raise Failed("it was accepted")


def _bad_pass(example: Example, loss: str = "cross_entropy", **config: float) -> Call:
    """The bad datum comes behind a good one."""
    return lambda model: submitted(model, Pass((B, example), loss, tuple(config.items())))


def an_unknown_loss_is_refused(lab: Lab) -> None:
    """A loss that quietly becomes another one trains something else."""
    _refuses(lab, lambda model: submitted(model, Pass((A,), "no_such_loss")), "no_such_loss")


def an_unknown_loss_setting_is_refused(lab: Lab) -> None:
    """A misspelt threshold that is ignored leaves the default in force."""
    example = A.reading(logprobs=np.zeros(len(A.tokens)), advantages=A.weights)
    _refuses(lab, _bad_pass(example, "ppo", clip_hihg=1.3), "clip_hihg", "loss_fn")


def a_missing_loss_input_is_refused(lab: Lab) -> None:
    """Weights that are forgotten must not become ones."""
    _refuses(lab, lambda model: submitted(model, Pass((replace(A, inputs=()),))), "weights")


def a_loss_input_of_wrong_length_is_refused(lab: Lab) -> None:
    """Broadcasting or cutting would put weights on the wrong tokens."""
    _refuses(lab, _bad_pass(A.reading(weights=A.weights[:-2])), "weights")


def targets_of_wrong_length_are_refused(lab: Lab) -> None:
    """Each token predicts its own target; a list of another length has no meaning."""
    _refuses(lab, _bad_pass(replace(A, targets=A.targets[:-2]).reading(weights=A.weights[:-2])), "target")


def a_weight_of_nan_is_refused(lab: Lab) -> None:
    """One NaN makes every weight of the model NaN at the next step."""
    weights = A.weights.copy()
    weights[1] = float("nan")
    _refuses(lab, _bad_pass(A.reading(weights=weights)), "weights", "nan", "NaN", "finite")


def a_token_beyond_the_vocabulary_is_refused(lab: Lab) -> None:
    """On a GPU an index out of range kills the process, and with it everybody's models."""
    _refuses(lab, _bad_pass(replace(A, tokens=(BEYOND, *A.tokens[1:]))), "model_input", "token", str(BEYOND))


def a_target_beyond_the_vocabulary_is_refused(lab: Lab) -> None:
    """Neither clamped nor ignored: the loss of such a target does not exist."""
    _refuses(lab, _bad_pass(replace(A, targets=(BEYOND, *A.targets[1:]))), "target", str(BEYOND))


def a_negative_target_is_refused(lab: Lab) -> None:
    """Some libraries skip -100; here weights say what to skip, and a negative id is a mistake."""
    _refuses(lab, _bad_pass(replace(A, targets=(-100, *A.targets[1:]))), "target", "-100")


def an_empty_datum_is_refused(lab: Lab) -> None:
    """It trains nothing, so it is a bug in whoever made it."""
    _refuses(lab, _bad_pass(Example((), (), (("weights", ()),))), "empty", "model_input", "length")


def beta1_of_one_is_refused(lab: Lab) -> None:
    """The bias correction would divide by zero."""
    _refuses(lab, lambda model: submitted(model, Step(1.0, beta1=1.0)), "beta1")


def a_negative_learning_rate_is_refused(lab: Lab) -> None:
    """A sign error in a schedule would unlearn the model."""
    _refuses(lab, lambda model: submitted(model, Step(-1e-4)), "learning_rate", "lr")


def a_state_that_does_not_exist_is_refused(lab: Lab) -> None:
    """Loading nothing must not leave a model half loaded."""
    _refuses(lab, lambda model: model.load_state(f"tinker://{model.model_id}/weights/no-such-state"), "no-such-state")


def an_unknown_base_model_is_refused(lab: Lab) -> None:
    """Training on a substitute would be found out after the bill."""
    with lab.session() as session:
        message = refusal(lambda: session.client.create_lora_training_client("no-such/model", rank=8))
    require("no-such/model" in message, f"the refusal does not name the model: {message[:300]}")


def bad_sampling_is_refused(lab: Lab) -> None:
    """What cannot be drawn as asked is not drawn otherwise; a sampler that gets a bad request goes on."""
    cases: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
        "temperature": (A.tokens, {"temperature": -1.0}),
        "top_p": (A.tokens, {"top_p": 1.5}),
        "max_tokens": (A.tokens, {"max_tokens": 0}),
        "prompt": ((*A.tokens, BEYOND), {}),
    }
    with lab.session() as session:
        sampler = session.sampler()

        def sample(tokens: tuple[int, ...], given: dict[str, Any]) -> Any:
            asked: dict[str, Any] = {"max_tokens": 2, "stop": []} | given
            params = tinker.SamplingParams(**asked)
            return sampler.sample(tinker.ModelInput.from_ints(list(tokens)), 1, params)

        for name, (tokens, given) in cases.items():
            try:
                message = refusal(partial(sample, tokens, given))
            except Failed as failure:
                raise Failed(f"{name}: {failure}") from None
            require(name in message, f"{given or 'a token beyond the vocabulary'}: the refusal says {message[:200]}")
            require(len(waited(sample(A.tokens, {})).sequences) == 1, f"no sample after a refused {name}")


CHECKS = (
    an_unknown_loss_is_refused,
    an_unknown_loss_setting_is_refused,
    a_missing_loss_input_is_refused,
    a_loss_input_of_wrong_length_is_refused,
    targets_of_wrong_length_are_refused,
    a_weight_of_nan_is_refused,
    a_token_beyond_the_vocabulary_is_refused,
    a_target_beyond_the_vocabulary_is_refused,
    a_negative_target_is_refused,
    an_empty_datum_is_refused,
    beta1_of_one_is_refused,
    a_negative_learning_rate_is_refused,
    a_state_that_does_not_exist_is_refused,
    an_unknown_base_model_is_refused,
    bad_sampling_is_refused,
)
