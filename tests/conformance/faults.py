"""Servers that are wrong in one way each, made of plugins and a subclass; the product knows nothing of them."""

import hashlib
import threading
from dataclasses import replace
from itertools import count

from safetensors.numpy import load_file

from weaver.checkpoints import write_checkpoint
from weaver.domain import AdamParams, AdapterRef
from weaver.service import Service


class Wrapped:
    """Passes everything on to a backend or a sampler."""

    def __init__(self, inner):
        self._inner = inner

    def __getattr__(self, name):
        return getattr(self._inner, name)


class DividesByTheSumOfWeights(Wrapped):
    """The mean that training frameworks are used to: the gradient of a pass over the sum of its weights."""

    def forward_backward(self, passes):
        return self._inner.forward_backward([self._averaged(one) for one in passes])

    def _averaged(self, one):
        total = sum(float(datum.loss_fn_inputs["weights"].sum()) for datum in one.data if self._weighted(datum))
        if not total:
            return one

        def function(logprobs, inputs, config):
            loss = one.loss.function(logprobs, inputs, config)
            return loss / total + (loss - loss / total).detach()

        return replace(one, loss=replace(one.loss, function=function))

    def _weighted(self, datum):
        return "weights" in datum.loss_fn_inputs


class IgnoresBetas(Wrapped):
    """Betas that were set once, when the optimizer was made."""

    def optim_step(self, model_id, params):
        return self._inner.optim_step(model_id, replace(params, beta1=0.9, beta2=0.95))


class DecaysEveryAdapter(Wrapped):
    """One optimizer over the adapters of all models."""

    def __init__(self, inner):
        super().__init__(inner)
        self._models = set()

    def create_model(self, model_id, lora):
        self._inner.create_model(model_id, lora)
        self._models.add(model_id)

    def drop_model(self, model_id):
        self._inner.drop_model(model_id)
        self._models.discard(model_id)

    def optim_step(self, model_id, params):
        left = 1 - params.learning_rate * (params.weight_decay if isinstance(params, AdamParams) else 0.0)
        for other in self._models - {model_id} if left != 1 else ():
            state = self._inner.export_state(other, optimizer=True)
            tensors = {name: tensor * left for name, tensor in state.adapter.tensors.items()}
            self._inner.import_state(other, replace(state, adapter=replace(state.adapter, tensors=tensors)))
        return self._inner.optim_step(model_id, params)


class ClearsGradients(Wrapped):
    """Every call begins with `zero_grad`."""

    def forward_backward(self, passes):
        for model_id in {one.model_id for one in passes if one.backward}:
            self._inner.import_state(model_id, self._inner.export_state(model_id, optimizer=True))
        return self._inner.forward_backward(passes)


class KeepsGradients(Wrapped):
    """No step ends with `zero_grad`: what was accumulated last comes again."""

    def __init__(self, inner):
        super().__init__(inner)
        self._last = {}

    def forward_backward(self, passes):
        self._last |= {one.model_id: one for one in passes if one.backward}
        return self._inner.forward_backward(passes)

    def optim_step(self, model_id, given):
        metrics = self._inner.optim_step(model_id, given)
        if model_id in self._last:
            self._inner.forward_backward([self._last[model_id]])
        return metrics


class NoBiasCorrection(Wrapped):
    """The first moment as it is; a step's rate is the only thing left to say so with."""

    def __init__(self, inner):
        super().__init__(inner)
        self._steps = {}

    def optim_step(self, model_id, given):
        self._steps[model_id] = self._steps.get(model_id, 0) + 1
        uncorrected = given.learning_rate * (1 - given.beta1 ** self._steps[model_id])
        return self._inner.optim_step(model_id, replace(given, learning_rate=uncorrected))


class RateOfTheFirstStep(Wrapped):
    """An optimizer that is configured once."""

    def __init__(self, inner):
        super().__init__(inner)
        self._rates = {}

    def optim_step(self, model_id, given):
        rate = self._rates.setdefault(model_id, given.learning_rate)
        return self._inner.optim_step(model_id, replace(given, learning_rate=rate))


class OneModelForAll(Wrapped):
    """The adapter that was made last trains on everybody's data."""

    def __init__(self, inner):
        super().__init__(inner)
        self._models = []

    def create_model(self, model_id, lora):
        self._models.append(model_id)
        self._inner.create_model(model_id, lora)

    def drop_model(self, model_id):
        if model_id in self._models:
            self._models.remove(model_id)
        self._inner.drop_model(model_id)

    def forward_backward(self, passes):
        models = [self._models[-1] if one.backward else one.model_id for one in passes]
        return self._inner.forward_backward([replace(one, model_id=m) for one, m in zip(passes, models)])


class OneAdapter(OneModelForAll):
    """The adapter that was made last is everybody's, also when it steps."""

    def optim_step(self, model_id, params):
        return self._inner.optim_step(self._models[-1], params)


class SavingClearsGradients(Wrapped):
    def export_state(self, model_id, *, optimizer):
        self._inner.import_state(model_id, self._inner.export_state(model_id, optimizer=True))
        return self._inner.export_state(model_id, optimizer=optimizer)


class Mistakes(Wrapped):
    """Saves states rightly, and loads `which(saved, asked)`."""

    def __init__(self, inner, which):
        super().__init__(inner)
        self._saved, self._which = [], which

    def export_state(self, model_id, *, optimizer):
        self._saved.append(self._inner.export_state(model_id, optimizer=optimizer))
        return self._saved[-1]

    def import_state(self, model_id, state):
        self._inner.import_state(model_id, self._which(self._saved, state))


class OneSeed(Wrapped):
    def create_model(self, model_id, lora):
        self._inner.create_model(model_id, replace(lora, seed=1))


class LoadsNothing(Wrapped):
    def import_state(self, model_id, state):
        pass


class LoadsNoOptimizer(Wrapped):
    def import_state(self, model_id, state):
        self._inner.import_state(model_id, replace(state, optimizer=None))


class ForgetsTheAdapter(Wrapped):
    def sample(self, asked):
        return self._inner.sample(replace(asked, adapter=None))


class SharesTheLiveSlot:
    """Samplers read the adapter that is being trained: whoever samples from a snapshot gets the newest weights.

    A snapshot's model is found by its content, which the backend has just exported.
    """

    def __init__(self, folder):
        self._folder, self._numbers = folder, count()
        self._exported, self._of_adapter = {}, {}
        self._backend = None

    def backend(self, inner):
        self._backend = fault = Wrapped(inner)

        def export_state(model_id, *, optimizer):
            state = inner.export_state(model_id, optimizer=optimizer)
            self._exported[digest(state.adapter.tensors)] = model_id
            return state

        fault.export_state = export_state
        return fault

    def sampler(self, inner):
        fault = Wrapped(inner)
        fault.sample = lambda request: inner.sample(replace(request, adapter=self._live(request.adapter)))
        return fault

    def _live(self, adapter):
        if adapter is None:
            return None
        if adapter.adapter_id not in self._of_adapter:
            content = digest(load_file(adapter.folder / "adapter_model.safetensors"))
            self._of_adapter[adapter.adapter_id] = self._exported[content]
        try:
            state = self._backend.export_state(self._of_adapter[adapter.adapter_id], optimizer=False)
        except KeyError:  # its session has ended
            return adapter
        folder = self._folder / str(next(self._numbers))
        write_checkpoint(folder, state)
        return AdapterRef(str(folder), folder)


def digest(tensors):
    return hashlib.sha256(b"".join(name.encode() + tensors[name].tobytes() for name in sorted(tensors))).digest()


class Tells(Wrapped):
    """A sampler that tells `change(request, result)` of what it has drawn."""

    def __init__(self, inner, change):
        super().__init__(inner)
        self._change = change

    def sample(self, request):
        inner = self._inner.sample(request)
        outer = type(inner)()

        def settle(_):
            if error := inner.exception():
                outer.set_exception(error)
            else:
                outer.set_result(self._change(request, inner.result()))

        inner.add_done_callback(settle)
        return outer


def loses_a_prompt_logprob(sampler):
    """n - 1 prompt logprobs, as an engine has them that counts predictions and not tokens."""

    def change(_, result):
        logprobs = result.prompt_logprobs_n
        return result if logprobs is None else replace(result, prompt_logprobs_n=logprobs[1:])

    return Tells(sampler, change)


class TakesTheNewestForTheBase:
    """Samplers of the base model use whatever was saved last: what is loaded into the model stays there."""

    def __init__(self, folder):
        self._folder, self._saved = folder, []

    def backend(self, inner):
        fault = Wrapped(inner)

        def export_state(model_id, *, optimizer):
            state = inner.export_state(model_id, optimizer=optimizer)
            folder = self._folder / f"saved-{len(self._saved)}"
            write_checkpoint(folder, state)
            self._saved.append(AdapterRef(str(folder), folder))
            return state

        fault.export_state = export_state
        return fault

    def sampler(self, inner):
        fault = Wrapped(inner)
        fault.sample = lambda request: inner.sample(
            replace(request, adapter=self._saved[-1]) if request.adapter is None and self._saved else request
        )
        return fault


class ExecutesRetries(Service):
    """Takes every request for a new one: a number that was used already is given the next free one."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self._numbering = threading.Lock()
        self._used = {}
        self._shift = {}

    def submit(self, model_id, seq_id, operation):
        with self._numbering:
            used = self._used.setdefault(model_id, {})
            if seq_id in used:
                self._shift[model_id] = self._shift.get(model_id, 0) + 1
                number = max(used.values()) + 1
            else:
                number = seq_id + self._shift.get(model_id, 0)
            used[seq_id] = max(number, used.get(seq_id, 0))
        return super().submit(model_id, number, operation)


class DrawsRetriesAgain(Service):
    """Takes no notice of a sample's number."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self._fresh = count(1_000_000)

    def sample(self, sampling_session_id, seq_id, **asked):
        return super().sample(sampling_session_id, next(self._fresh), **asked)


class SaysNothing:
    """An application whose refusals do not say what is wrong."""

    def __init__(self, app):
        self._app = app

    async def __call__(self, scope, receive, send):
        refused = False

        async def blank(message):
            nonlocal refused
            if message["type"] == "http.response.start":
                refused = message["status"] in (400, 404)
                if refused:
                    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(EMPTY)).encode())]
                    message = message | {"headers": headers}
            elif refused:
                message = message | {"body": EMPTY}
            await send(message)

        await self._app(scope, receive, blank)


EMPTY = b'{"detail": "invalid request"}'
