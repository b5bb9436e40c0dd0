"""The packages in examples/plugins, built, pip-installed, served by `weaver serve`, used through the vendor's SDK."""

import hashlib
import json
import re
import shutil
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import tinker
import torch
from peft import PeftModel
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).parent))

from package_environments import ECHO, EXAMPLES

PACKAGES = ("weaver-loss-bradley-terry", "weaver-loss-gmpo", "weaver-sampler-remembering")
MODEL = "tiny/llama"
RNG = np.random.default_rng(11)


@pytest.fixture(scope="module")
def installed(new_environment, wheels):
    """An environment with all of them."""
    environment = new_environment()
    environment.install(*(wheels[name] for name in PACKAGES))
    return environment


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("served") / "data"


@pytest.fixture(scope="module")
def url(installed, tiny, data_dir):
    with installed.serve("--model", f"{MODEL}={tiny}", "--sampler", "remembering", data_dir=data_dir) as url:
        yield url


def service_client(url):
    return tinker.ServiceClient(base_url=url, api_key="tml-test")


@pytest.fixture(scope="module")
def trainer(url):
    """A model whose adapter is not at its beginning any more: B is not zero."""
    client = service_client(url).create_lora_training_client(MODEL, rank=4, seed=5).result()
    for length in (9, 6):
        weights = floats(RNG.uniform(-1, 2, length))
        client.forward_backward([datum(length, weights=weights)], "cross_entropy").result()
        client.optim_step(tinker.AdamParams(learning_rate=0.02)).result()
    return client


def floats(values):
    return tinker.TensorData.from_numpy(np.array(values, np.float32).reshape(-1))


def whole(*values):
    return tinker.TensorData.from_numpy(np.array(values, np.int64))


def datum(length, **inputs):
    tokens, targets = RNG.integers(2, 128, (2, length))
    return tinker.Datum(tinker.ModelInput.from_ints(tokens.tolist()), {"target_tokens": whole(*targets), **inputs})


@pytest.fixture(scope="module")
def saved(data_dir):
    """Saves the model and gives the folder: the one that was written last."""

    def save(client, name):
        client.save_state(name, overwrite=True).result()
        return max(data_dir.rglob("adapter_model.safetensors"), key=lambda file: file.stat().st_mtime_ns).parent

    return save


@pytest.fixture(scope="module")
def reference(saved, tiny):
    """The logprobs of a client's model by transformers and peft, and then the gradient of a value made of them."""

    def make(client):
        base = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
        model = PeftModel.from_pretrained(base, saved(client, "reference"), is_trainable=True).eval()

        def logprobs(one):
            found = model(input_ids=torch.tensor(one.model_input.to_ints())[None]).logits[0].log_softmax(-1)
            return found.gather(1, torch.from_numpy(one.loss_fn_inputs["target_tokens"].to_numpy())[:, None])[:, 0]

        def gradients(value):
            value.backward()
            named = model.named_parameters()
            return {name.replace(".default", ""): one.grad.numpy() for name, one in named if "lora_" in name}

        return logprobs, gradients

    return make


@pytest.fixture(scope="module")
def measured(saved):
    """The accumulated gradients: with both betas 0 and eps far above every gradient a step is -lr / eps · gradient."""

    def measure(client):
        before = load_file(saved(client, "before") / "adapter_model.safetensors")
        client.optim_step(tinker.AdamParams(learning_rate=1e12, beta1=0.0, beta2=0.0, eps=1e9)).result()
        after = load_file(saved(client, "after") / "adapter_model.safetensors")
        return {name: (tensor - after[name]) / 1000 for name, tensor in before.items()}

    return measure


def assert_same_gradients(found, expected, tolerance=1e-4):
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        size = np.linalg.norm(gradient)
        assert size > 0, f"{name} has no gradient, so it would prove nothing"
        difference = np.linalg.norm(found[name] - gradient) / size
        assert difference < tolerance, f"{name}: {difference:.1e}"


@pytest.fixture
def own(trainer, url):
    """A client of the trained model for one test, whose steps no other test sees."""
    path = trainer.save_state("trained", overwrite=True).result().path
    return service_client(url).create_training_client_from_state(path).result()


def test_gmpo_agrees_with_the_papers_formula_in_value_and_gradient(own, reference, measured):
    low, high = 0.3, 0.5
    logprobs, gradients = reference(own)
    data, value = [], 0.0
    for length, advantage in ((12, 1.4), (7, -0.6), (1, 2.0), (20, -1.0)):
        one = datum(length)
        lp = logprobs(one)
        sampled = floats(lp.detach().numpy() + RNG.normal(0, 0.6, length))
        mask = RNG.integers(0, 2, length)
        mask[-1] = 1
        one.loss_fn_inputs.update({"logprobs": sampled, "advantage": floats(advantage), "mask": whole(*mask)})
        data.append(one)
        sign, product = np.sign(advantage), 1.0
        for ratio, counts in zip((lp - torch.from_numpy(sampled.to_numpy())).exp(), mask):
            clipped = ratio.clamp(np.exp(-low), np.exp(high))
            product *= torch.minimum(ratio**sign, clipped**sign) ** sign if counts else 1.0
        value -= advantage * product ** (1 / mask.sum())
    found = own.forward_backward(data, "gmpo", {"clip_low": low, "clip_high": high}).result()
    assert found.metrics["loss:sum"] == pytest.approx(value.item(), rel=1e-4)
    assert 0 < found.metrics["clipped_fraction:mean"] < 1
    assert_same_gradients(measured(own), gradients(value))


def test_bradley_terry_agrees_with_autograd_whatever_the_order(own, reference, measured):
    logprobs, gradients = reference(own)
    kinds = ((3, 1), (8, 0), (3, 0), (8, 1), (-1, 0), (-1, 1))
    data = [datum(4 + index, pair=whole(pair), preferred=whole(to)) for index, (pair, to) in enumerate(kinds)]
    data[1].loss_fn_inputs["weights"] = floats(RNG.uniform(-1, 2, 5))
    scores = [logprobs(one) for one in data]
    scores[1] = scores[1] * torch.from_numpy(data[1].loss_fn_inputs["weights"].to_numpy())
    scores = [score.sum() for score in scores]
    value = sum(torch.log1p(torch.exp(-0.2 * (scores[b] - scores[w]))) for b, w in ((0, 2), (3, 1), (5, 4)))
    found = own.forward_backward(data, "bradley_terry", {"beta": 0.2}).result()
    assert found.metrics["loss:sum"] == pytest.approx(value.item(), rel=1e-5)
    assert found.metrics["pairs:sum"] == 3
    told = [float(output["score"].to_numpy()[0]) for output in found.loss_fn_outputs]
    assert told == pytest.approx([score.item() for score in scores], rel=1e-4)
    assert_same_gradients(measured(own), gradients(value))


def pairs(*kinds):
    return [datum(3, pair=whole(pair), preferred=whole(preferred)) for pair, preferred in kinds]


def rated(*advantages, **more):
    return [datum(3, logprobs=floats([-1.0] * 3), advantage=floats(one), **more) for one in advantages]


@pytest.mark.parametrize(
    ("data", "loss", "config", "message"),
    [
        (
            rated(1.0),
            "gmpo",
            {"epsilon": 0.4},
            "loss_fn_config['epsilon'] is not read by the loss 'gmpo': it reads clip",
        ),
        (
            rated(1.0),
            "gmpo",
            {"clip_low": -1},
            "loss_fn_config['clip_low'] is -1.0; the loss 'gmpo' takes finite values",
        ),
        (
            rated([1.0, 2.0]),
            "gmpo",
            {},
            "data[0].loss_fn_inputs['advantage'] has shape (2,); it must be that of one nu",
        ),
        (
            rated(1.0, 2.0, mask=whole(0, 0, 0)),
            "gmpo",
            {},
            "'gmpo' of weaver-loss-gmpo 0.1.0 failed on data[0]: mask is",
        ),
        (
            pairs((1, 1), (2, 1), (1, 0)),
            "bradley_terry",
            {},
            "data[1] is alone in pair 2; send both answers in one call",
        ),
        (pairs((1, 1), (1, 0)), "gmpo", {}, "data[0].loss_fn_inputs"),
    ],
)
def test_what_a_loss_does_not_take_is_refused_by_name(trainer, data, loss, config, message):
    with pytest.raises((tinker.BadRequestError, tinker.RequestFailedError), match=re.escape(message)):
        trainer.forward_backward(data, loss, config).result()


def test_the_sampler_says_what_transformers_says_and_says_it_again(url, tiny):
    prompt = [5, 77, 31, 8]
    model, tokens = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32), list(prompt)
    for _ in range(6):
        tokens.append(int(model(input_ids=torch.tensor([tokens])).logits[0, -1].argmax()))
    sampler = service_client(url).create_sampling_client(base_model=MODEL).result()
    greedy = tinker.SamplingParams(max_tokens=6, temperature=0.0, stop=[])
    answers = [sampler.sample(tinker.ModelInput.from_ints(prompt), 1, greedy).result() for _ in range(2)]
    assert [answer.sequences[0].tokens for answer in answers] == [tokens[4:]] * 2
    assert answers[0].sequences[0].logprobs == answers[1].sequences[0].logprobs


def test_the_server_tells_of_the_installed_losses(url):
    told = {one["name"]: one for one in json.load(urllib.request.urlopen(f"{url}/api/v1/losses"))["losses"]}
    assert told["gmpo"]["source"] == "Zhao et al. 2025, arXiv:2507.20673"
    assert told["bradley_terry"]["plugin"] == "weaver-loss-bradley-terry 0.1.0"


def test_the_packages_own_tests_pass_where_they_are_installed(installed, tmp_path):
    """Without their sources beside: what they import is the wheels'."""
    for name in PACKAGES:
        shutil.copytree(EXAMPLES / name / "tests", tmp_path / name)
        shutil.copy(EXAMPLES / name / "pyproject.toml", tmp_path)  # what they say to pytest is the same
    done = installed.run("python", "-m", "pytest", "-q", "-p", "no:cacheprovider", *PACKAGES, cwd=tmp_path)
    assert done.returncode == 0, done.stdout


def test_a_sampler_fits_into_sixty_lines():
    [module] = (EXAMPLES / "weaver-sampler-remembering").glob("*.py")
    assert len(module.read_text().splitlines()) < 60


def digest(folder):
    """Of everything that weaver's wheel brought."""
    files = sorted(file for name in ("weaver", "weaver_peft") for file in (folder / name).rglob("*.py"))
    assert len(files) > 100
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def refusal(environment, data_dir):
    """What a server of this environment says to `gmpo`."""
    with environment.serve(*ECHO, data_dir=data_dir) as url:
        client = service_client(url).create_lora_training_client("m", rank=4).result()
        with pytest.raises((tinker.BadRequestError, tinker.RequestFailedError)) as refused:
            client.forward_backward([datum(2, advantage=floats(1.0), logprobs=floats([0, 0]))], "gmpo").result()
        return str(refused.value)


def test_pip_install_adds_a_name_and_pip_uninstall_takes_it_away(new_environment, wheels, tmp_path):
    environment = new_environment()
    code = digest(environment.site)
    assert environment.run("python", "-c", "import weaver; print(weaver.__file__)").stdout.startswith(
        str(environment.site)
    )
    names = (
        "cispo, cross_entropy, custom, dro, forward_logprob, gspo, importance_sampling, ppo, ppo_clip, "
        "stable_reinforce, surrogate, truncated_importance_sampling"
    )
    gone = f"there is no loss 'gmpo'; there are: {names}"
    assert gone in refusal(environment, tmp_path / "before")
    environment.install(wheels["weaver-loss-gmpo"])
    assert digest(environment.site) == code
    assert "plugin: weaver-loss-gmpo 0.1.0" in environment.run("weaver", "plugins", "show", "gmpo").stdout
    assert "computes the loss 'cross_entropy' only, not 'gmpo'" in refusal(environment, tmp_path / "installed")
    environment.uninstall("weaver-loss-gmpo")
    assert gone in refusal(environment, tmp_path / "after")
    assert digest(environment.site) == code
