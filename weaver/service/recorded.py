"""What the sampler said of the tokens it drew, kept for losses that compare the trained model with it.

Shapes: T tokens of a datum.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from weaver.domain import Array, Datum, FloatArray, ForwardBackward, ProvenanceSpan, SampleResult
from weaver.errors import InvalidInput, ServerError
from weaver.loss import TARGET_TOKENS, Loss
from weaver.store import Row, Store

KEPT_SECONDS = 86_400.0
"""How long a sequence can be trained on after it was sampled, or last trained on."""

AGREEMENT = 1e-5
"""How far logprobs that a client sends along may lie from the recorded ones."""


class RecordedSequences:
    """Writes sampled sequences down before their client hears of them, and reads them back for training.

    Rows, for a session outlives a restart; every method may be called from any thread.
    """

    def __init__(self, store: Store, clock: Callable[[], float] = time.time) -> None:
        self._store, self._clock = store, clock
        self._writer = ThreadPoolExecutor(1, "weaver-record")  # a commit would keep the sampler's thread waiting

    def recorded(
        self, sampled: "Future[SampleResult]", session_id: str, sequence_ids: Sequence[str]
    ) -> "Future[SampleResult]":
        """A future of the same result that settles once its sequences are written; cancelling it cancels `sampled`."""
        outer: Future[SampleResult] = Future()

        def write(done: "Future[SampleResult]") -> None:
            if done.cancelled() or not outer.set_running_or_notify_cancel():
                outer.cancel()
            elif error := done.exception():
                outer.set_exception(error)
            else:
                self._writer.submit(self._write, done.result(), session_id, sequence_ids, outer)

        outer.add_done_callback(lambda done: sampled.cancel() if done.cancelled() else None)
        sampled.add_done_callback(write)
        return outer

    def filled(self, operation: ForwardBackward, loss: Loss, session_id: str) -> ForwardBackward:
        """The operation with every recorded input of its loss in place; see `weaver.loss.LossInput`.

        Raises InvalidInput naming a span that is missing, unknown, too old or contradicts the datum.
        """
        names = [declared.name for declared in loss.inputs if declared.recorded]
        if not names:
            return operation
        spans = [span for datum in operation.data for span in datum.loss_input_spans if span.kind == "sampled"]
        known = self._known({span.sequence_id for span in spans}, session_id)
        data = tuple(_filled(datum, f"data[{n}]", names, loss, known) for n, datum in enumerate(operation.data))
        self._store.keep_sampled_sequences(known, self._clock() + KEPT_SECONDS)
        return replace(operation, data=data)

    def close(self) -> None:
        self._writer.shutdown()

    def _known(self, sequence_ids: set[str], session_id: str) -> Mapping[str, Row]:
        found, now = self._store.sampled_sequences(sequence_ids), self._clock()
        return {row["sequence_id"]: row for row in found if row["session_id"] == session_id and row["expires"] > now}

    def _write(
        self, result: SampleResult, session_id: str, sequence_ids: Sequence[str], outer: "Future[SampleResult]"
    ) -> None:
        now = self._clock()
        rows = [
            {
                "sequence_id": sequence_id,
                "session_id": session_id,
                "expires": now + KEPT_SECONDS,
                "tokens": sequence.tokens.astype("<i4").tobytes(),
                "logprobs": sequence.logprobs.astype("<f4").tobytes(),
            }
            for sequence_id, sequence in zip(sequence_ids, result.sequences, strict=True)
        ]
        try:
            self._store.add_sampled_sequences(rows, now)
            outer.set_result(result)
        except Exception as error:  # noqa: BLE001 -- whatever the database raises, the client that waits must hear of it
            outer.set_exception(ServerError(f"the sampled sequences could not be recorded: {error}"))


def _filled(datum: Datum, where: str, names: Sequence[str], loss: Loss, known: Mapping[str, Row]) -> Datum:
    targets, spans = datum.loss_fn_inputs[TARGET_TOKENS], datum.loss_input_spans
    if not spans:
        raise InvalidInput(
            f"{where}.loss_fn_input_spans is missing: the loss {loss.name!r} must know which sampled sequence each "
            "target token is from. Attach the spans with Datum.with_provenance."
        )
    covered = sum(span.length for span in spans)
    if covered != len(targets):
        raise InvalidInput(f"{where}.loss_fn_input_spans cover {covered} tokens; target_tokens has {len(targets)}")
    logprobs_T, start = np.full(len(targets), np.nan, np.float32), 0
    for index, span in enumerate(spans):
        place = slice(start, start + span.length)
        start = place.stop
        if span.kind == "sampled":
            logprobs_T[place] = _recorded(span, f"{where}.loss_fn_input_spans[{index}]", targets[place], place, known)
    _check_given(datum, where, names, logprobs_T)
    return replace(datum, loss_fn_inputs={**datum.loss_fn_inputs, **dict.fromkeys(names, logprobs_T)})


def _recorded(span: ProvenanceSpan, name: str, targets: Array, place: slice, known: Mapping[str, Row]) -> FloatArray:
    """The logprobs of the tokens that a span names, which must be the targets it covers."""
    row = known.get(span.sequence_id)
    if row is None:
        raise InvalidInput(
            f"{name} names the sequence {span.sequence_id!r}, which this server has no record of: it must have been "
            "sampled with record_stability_info=True, in the same session, and sampled or trained on within a day"
        )
    tokens, end = np.frombuffer(row["tokens"], "<i4"), span.offset + span.length
    if end > len(tokens):
        raise InvalidInput(
            f"{name} covers the tokens {span.offset} to {end} of the sequence {span.sequence_id!r}, which has "
            f"{len(tokens)}"
        )
    if differing := np.flatnonzero(tokens[span.offset : end] != targets).tolist():
        at = differing[0]
        raise InvalidInput(
            f"{name} contradicts target_tokens[{place.start + at}], which is {int(targets[at])}: token "
            f"{span.offset + at} of the sequence {span.sequence_id!r} is {int(tokens[span.offset + at])}"
        )
    return np.frombuffer(row["logprobs"], "<f4")[span.offset : end].astype(np.float32)


def _check_given(datum: Datum, where: str, names: Sequence[str], logprobs_T: FloatArray) -> None:
    """What the client sends must agree with what was recorded, and be zero where nothing was drawn."""
    drawn = ~np.isnan(logprobs_T)
    for name, array in datum.loss_fn_inputs.items():
        field = f"{where}.loss_fn_inputs[{name!r}]"
        if name in names:
            wrong = drawn & ~(np.abs(array - logprobs_T) <= AGREEMENT)
            why = "which is not what the server recorded while it sampled that token. Leave it out."
        elif name == TARGET_TOKENS:
            continue
        else:
            wrong, why = ~drawn & (array != 0), "but loss_fn_input_spans say that no sampler drew that token"
        if wrong.any():
            place = int(np.flatnonzero(wrong)[0])
            raise InvalidInput(f"{field} is {array[place]} at [{place}], {why}")
