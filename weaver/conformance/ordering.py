"""Each call once, in call order, whatever the network does."""

from collections.abc import Sequence

import tinker

from weaver.conformance.checks import Failed, require
from weaver.conformance.lab import UNSEEN, A, B, Lab, look, probe_scores, run, snapshot, submitted, waited
from weaver.conformance.recipes import Array, Pass, Step, passes, plain, text
from weaver.conformance.relay import Relay, relaying

GROUP = "ordering and retries"

PARTS = (A, text(2, 11), B, text(2, 12), UNSEEN)
"""Each pair of these holds one of the probes, so that none can be lost unseen."""
PROMPT = tinker.ModelInput.from_ints(list(A.tokens))


def _memorable(lab: Lab) -> tuple[Pass, Step, Pass, Step]:
    """None of these can run twice, or in another order, unseen: there is momentum and there is weight decay."""
    rate = plain(lab.rate).learning_rate
    return (
        passes(A),
        Step(rate, beta1=0.5),
        passes(B),
        Step(rate, beta1=0.5, weight_decay=0.5 / rate),
    )


def calls_take_effect_in_call_order(lab: Lab) -> None:
    """Loops submit ahead and wait later; they must get what waiting for each call would have given."""
    recipe = _memorable(lab)
    with lab.session() as session:
        patient = session.model()
        for operation in recipe:
            run(patient, [operation])
        expected = look(patient)
    lab.same(lab.after(*recipe), expected, "calls that were not waited for, against the same ones waited for")


def parts_of_a_pass_count_once_in_any_order(lab: Lab) -> None:
    """The SDK cuts a large pass into parts and sends the first one last; their gradients must be the whole's."""
    with relaying(lab.url, fwdbwd_max_chunk_len=2) as relay, lab.session(relay.url) as session:
        model = session.model()
        [output, _] = run(model, [Pass(PARTS), plain(lab.rate)])
        sent = len(relay.of("forward_backward"))
        found = look(model)
    require(sent == 3, f"the SDK sent {sent} parts; this check needs it to cut a pass of 5 data into 3")
    lengths = [len(one["logprobs"].to_numpy()) for one in output.loss_fn_outputs]
    require(lengths == [len(part.tokens) for part in PARTS], f"outputs of lengths {lengths} are not in data order")
    lab.same(found, lab.after(Pass(PARTS), plain(lab.rate)), "a pass in three parts, against the same in one")


def a_refused_call_does_not_block_the_next(lab: Lab) -> None:
    """A refused request has used up its number, and the client goes on with the next one."""
    with lab.session() as session:
        model = session.model()
        bad = submitted(model, Pass((A,), loss="no_such_loss"))
        good = [submitted(model, operation) for operation in (passes(A), plain(lab.rate))]
        _refused(bad)
        for future in good:
            waited(future)
        found = look(model)
    lab.same(found, lab.after(passes(A), plain(lab.rate)), "a pass and a step after a refused pass")


def _refused(future: object) -> None:
    try:
        waited(future)
    except (tinker.APIStatusError, tinker.RequestFailedError):
        return
    raise Failed("a pass with the loss 'no_such_loss' succeeded")


def a_retried_pass_counts_once(lab: Lab) -> None:
    """When an acknowledgement is lost the SDK sends the pass again; its gradient must not be added twice."""
    found = _with_lost_answers(lab, "forward_backward", (passes(A), plain(lab.rate)))
    lab.same(found, lab.after(passes(A), plain(lab.rate)), "a pass whose acknowledgement was lost")


def a_retried_step_counts_once(lab: Lab) -> None:
    """When an acknowledgement is lost the SDK sends the step again; weights must not move or decay twice."""
    recipe = _memorable(lab)
    found = _with_lost_answers(lab, "optim_step", recipe)
    lab.same(found, lab.after(*recipe), "a step whose acknowledgement was lost")


def _with_lost_answers(lab: Lab, operation: str, recipe: Sequence[Pass | Step]) -> Array:
    with relaying(lab.url) as relay, lab.session(relay.url) as session:
        model = session.model()
        relay.losing.add(operation)
        run(model, recipe)
        sent = [one.body for one in relay.of(operation)]
        require(sent[0] == sent[1], f"the SDK did not repeat {operation} after an answer was lost")
        return look(model)


def a_retried_model_is_the_same_model(lab: Lab) -> None:
    """When the answer to `create_model` is lost, a second model would leave the first one behind, paid for."""
    with relaying(lab.url) as relay:
        relay.losing.add("create_model")
        with lab.session(relay.url) as session:
            session.model()
        _same_ticket(relay, "create_model")


def a_repeat_after_the_result_changes_nothing(lab: Lab) -> None:
    """A proxy may deliver a request a second time long after it was done."""
    recipe = _memorable(lab)
    with relaying(lab.url) as relay, lab.session(relay.url) as session:
        model = session.model()
        run(model, recipe)
        for operation in ("forward_backward", "optim_step", "create_model"):
            for exchange in relay.of(operation):
                relay.again(exchange)
            _same_ticket(relay, operation)
        found = look(model)
    lab.same(found, lab.after(*recipe), "operations that arrived once more after they were done")


def _same_ticket(relay: Relay, operation: str) -> None:
    """Every repeat of a request must get the first one's answer."""
    first: dict[bytes, bytes] = {}
    for exchange in relay.of(operation):
        expected = first.setdefault(exchange.body, exchange.answer)
        found = (exchange.status, exchange.answer)
        require(found == (200, expected), f"a repeat of {operation} got {found}, the first one {expected!r}")


def a_retried_sample_is_drawn_once(lab: Lab) -> None:
    """A retried sample without a seed must give the tokens of the first, for a client may already count on them."""
    with relaying(lab.url) as relay, lab.session(relay.url) as session:
        sampler = session.sampler()
        relay.losing.add("asample")
        params = tinker.SamplingParams(max_tokens=4, stop=[])
        waited(sampler.sample(PROMPT, 1, params))
        _same_ticket(relay, "asample")


def a_result_can_be_fetched_again(lab: Lab) -> None:
    """The answer with a result can be lost too; the SDK then asks for it again."""
    with relaying(lab.url) as relay, lab.session(relay.url) as session:
        run(session.model(), [passes(A), plain(lab.rate)])
        fetched = [one for one in relay.of("retrieve_future") if one.status == 200 and b"try_again" not in one.answer]
        require(len(fetched) >= 3, f"{len(fetched)} results were fetched, of a model, a pass and a step")
        for exchange in fetched:
            second = relay.again(exchange)
            require(
                second.answer == exchange.answer,
                f"a result fetched again is {second.status} {second.answer[:200]!r}",
            )


def a_snapshot_has_the_updates_before_it(lab: Lab) -> None:
    """Policies are sampled from a snapshot that was asked for before the step was done."""
    with lab.session() as session:
        model = session.model()
        steps = [submitted(model, operation) for operation in (passes(A), plain(lab.rate))]
        sampled = probe_scores(snapshot(model))
        for step in steps:
            waited(step)
        trained = look(model)
    lab.agree(sampled, trained, "a snapshot taken right after a step, against the trainer")
    lab.differ(sampled, lab.start, "a snapshot taken right after a step, against the weights before")


CHECKS = (
    calls_take_effect_in_call_order,
    parts_of_a_pass_count_once_in_any_order,
    a_refused_call_does_not_block_the_next,
    a_retried_pass_counts_once,
    a_retried_step_counts_once,
    a_retried_model_is_the_same_model,
    a_repeat_after_the_result_changes_nothing,
    a_retried_sample_is_drawn_once,
    a_result_can_be_fetched_again,
    a_snapshot_has_the_updates_before_it,
)
