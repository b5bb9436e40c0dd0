"""Results of passes, datum by datum."""

from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias

from weaver.types import Datum, SampleRefOutput
from weaver.types.datasets import datum_id, one_dimensional
from weaver.types.datum import identified

AlignedTrainingOutput: TypeAlias = SampleRefOutput | Mapping[str, Any]

_NOT_TO_SET: Final = frozenset({"target_tokens", "loss_mask", "weights", "model_input"})
_TOKENS: Final = ("token", "tokens", "token_ids", "input_ids", "label", "labels")


def align_training_outputs(data: Sequence[Datum], result: Mapping[str, Any]) -> list[AlignedTrainingOutput]:
    """One output for each datum, in their order; where data have ids, the outputs must have the same ones.

    `result` is what `forward` and `forward_backward` give. Raises ValueError for one that is not of these data.
    """
    asked, outputs = identified(data), _outputs(result)
    if len(outputs) != len(asked):
        raise ValueError(f"Expected {len(asked)} loss_fn_outputs, got {len(outputs)}")
    return [_aligned(datum, output, index) for index, (datum, output) in enumerate(zip(asked, outputs, strict=True))]


def _aligned(datum: Datum, output: Mapping[str, Any], index: int) -> AlignedTrainingOutput:
    if datum.datum_id is None:
        return output
    try:
        told = datum_id(output.get("datum_id"))
    except ValueError as error:
        raise ValueError(f"loss_fn_outputs[{index}] has invalid datum_id: {error}") from error
    if told != datum.datum_id:
        raise ValueError(f"loss_fn_outputs[{index}] datum_id does not match the input wire order")
    is_kept = output.get("kind") == "sample_ref_output"
    if is_kept != datum.is_sample_ref:
        raise ValueError(f"loss_fn_outputs[{index}] is not of the kind of its datum, {datum.kind}")
    if not is_kept:
        return output
    found = SampleRefOutput.from_payload(output)
    if found.sample_ref != datum.sample_ref:
        raise ValueError(f"loss_fn_outputs[{index}] sample_ref does not match input")
    return found


def _outputs(result: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Of an answer, or of the `result` in it. Both at once must say the same."""
    inner = result.get("result")
    places = [place for place in (result, inner) if isinstance(place, Mapping) and "loss_fn_outputs" in place]
    if not places:
        raise ValueError("training result must contain a loss_fn_outputs array")
    found = places[0]["loss_fn_outputs"]
    if places[-1]["loss_fn_outputs"] != found:
        raise ValueError("training result contains ambiguous loss_fn_outputs arrays")
    if not isinstance(found, list) or not all(isinstance(output, Mapping) for output in found):
        raise ValueError("loss_fn_outputs must be an array of objects")
    return found


def attach_loss_fn_outputs(
    data: Sequence[Datum], result: Mapping[str, Any], *, field_map: Mapping[str, str] | None = None
) -> list[Datum]:
    """Copies of the data with fields of their outputs as loss inputs: `logprobs` as `old_logprobs` unless told.

    Raises ValueError for tokens, for inputs that are not the client's to set, and for a field that is not there.
    """
    chosen = dict(field_map or {"logprobs": "old_logprobs"})
    if any(datum.is_sample_ref for datum in data):
        raise ValueError("SampleRef outputs cannot be attached as loss inputs")
    tokens = sorted(name for name in chosen if name.lower().endswith(_TOKENS))
    fixed = sorted(_NOT_TO_SET & set(chosen.values()))
    if tokens or fixed:
        raise ValueError(
            f"token-bearing or server-owned fields cannot be attached as loss inputs: {', '.join(tokens + fixed)}"
        )
    asked = identified(data)
    made = []
    for index, (datum, output) in enumerate(zip(asked, align_training_outputs(asked, result), strict=True)):
        assert isinstance(output, Mapping)  # of no kept sample
        missing = [name for name in chosen if name not in output]
        if missing:
            raise ValueError(f"loss_fn_outputs[{index}] is missing {', '.join(missing)}")
        updates = {input_name: one_dimensional(output[name], name) for name, input_name in chosen.items()}
        made.append(datum.with_loss_fn_inputs(updates))
    return made
