"""Exports: what leaves the server must be readable by what others use, and by nobody who was not given a link."""

import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import httpx
import tinker

from weaver.conformance.checks import require
from weaver.conformance.lab import RANK, A, Lab, run, waited
from weaver.conformance.recipes import passes, plain

GROUP = "REST"

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
LINK_SECONDS = 60.0
Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Tensor:
    """One entry of a safetensors file."""

    shape: Shape
    is_zero: bool


def an_export_is_a_peft_adapter(lab: Lab) -> None:
    """Weights are worth what can be done with them elsewhere: PEFT's two files, of the trained rank and base."""
    with lab.session() as session:
        model = session.model()
        run(model, [passes(A), plain(lab.rate)])
        files = {name: _opened(url).content for name, url in _links(lab, model).items()}
    require(
        {CONFIG, TENSORS} <= set(files), f"an export has the files {sorted(files)}; PEFT reads {CONFIG} and {TENSORS}"
    )
    config = json.loads(files[CONFIG])
    told = (config.get("peft_type"), config.get("r"), config.get("base_model_name_or_path"))
    require(told == ("LORA", RANK, lab.model), f"{CONFIG} says {told} (type, rank, base), and {RANK} was trained")
    tensors = _read(files[TENSORS])
    firsts = [name for name in tensors if ".lora_A." in name]
    require(bool(firsts), f"{TENSORS} has no lora_A among {sorted(tensors)[:4]}")
    for name in firsts:
        other = name.replace(".lora_A.", ".lora_B.")
        require(other in tensors, f"{TENSORS} has {name} and no {other}")
        ranks = (tensors[name].shape[0], tensors[other].shape[1])
        require(ranks == (RANK, RANK), f"{name} and its lora_B have ranks {ranks}, and {RANK} was trained")
    trained = [name for name, tensor in tensors.items() if ".lora_B." in name and not tensor.is_zero]
    require(bool(trained), "every lora_B of a trained model is zero in its export")


def a_link_opens_for_its_bearer_alone(lab: Lab) -> None:
    """A link is opened without a key, so nothing of it may be guessed: changed in any part it must not open."""
    with lab.session() as session:
        url = _links(lab, session.model())[CONFIG]
        require(_opened(url).status_code == 200, "a link to an export does not open")
        for what, changed in _tampered(url).items():
            answer = httpx.get(changed, timeout=LINK_SECONDS, follow_redirects=True)
            require(answer.status_code >= 400, f"a link with another {what} still opens: {answer.status_code}")


def _links(lab: Lab, model: tinker.TrainingClient) -> dict[str, str]:
    path = waited(model.save_weights_external(lab.new_name())).path
    return dict(waited(lab.rest().get_external_weights_urls(path)).urls)


def _opened(url: str) -> httpx.Response:
    """What is behind a link, without a key."""
    answer = httpx.get(url, timeout=LINK_SECONDS, follow_redirects=True)
    require(
        answer.status_code == 200, f"a link to an export is answered with {answer.status_code}: {answer.text[:200]}"
    )
    return answer


def _tampered(url: str) -> dict[str, str]:
    """The link with each value of its query changed in its last character, and with another file's name."""
    parts = urlsplit(url)
    query = parse_qsl(parts.query, keep_blank_values=True)
    changed = {"file": urlunsplit(parts._replace(path=parts.path.replace(CONFIG, TENSORS)))}
    for place, (name, value) in enumerate(query):
        other = value[:-1] + ("1" if value[-1:] != "1" else "2")
        replaced = [*query[:place], (name, other), *query[place + 1 :]]
        changed[name] = urlunsplit(parts._replace(query=urlencode(replaced)))
    return changed


def _read(file: bytes) -> dict[str, _Tensor]:
    """A safetensors file: the length of a header, the header in JSON, and bytes at the offsets it tells."""
    start = 8 + int.from_bytes(file[:8], "little")
    header: dict[str, Any] = json.loads(file[8:start])
    header.pop("__metadata__", None)
    return {
        name: _Tensor(
            tuple(one["shape"]), not any(file[start + one["data_offsets"][0] : start + one["data_offsets"][1]])
        )
        for name, one in header.items()
    }


CHECKS = (an_export_is_a_peft_adapter, a_link_opens_for_its_bearer_alone)
