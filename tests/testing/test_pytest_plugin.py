"""The fixtures that plugin authors get: they ask for them as these tests do, in a pytest of its own."""

import subprocess
import sys

AUTHORS_TEST = """
import numpy as np
import tinker


def test_a_loss_falls(weaver_server, weaver_registry):
    assert "cross_entropy" in weaver_registry.losses
    inputs = {"target_tokens": np.array([3, 4, 5]), "weights": np.ones(3, np.float32)}
    datum = tinker.Datum(tinker.ModelInput.from_ints([2, 3, 4]), inputs)
    client = tinker.ServiceClient(base_url=weaver_server.url, api_key=weaver_server.api_key)
    model = client.create_lora_training_client(weaver_server.model, rank=4).result()
    losses = []
    for _ in range(3):
        losses.append(model.forward_backward([datum], "cross_entropy").result().metrics["loss:sum"])
        model.optim_step(tinker.AdamParams(learning_rate=0.005)).result()
    assert losses[0] > losses[1] > losses[2]
"""


def pytest_of(folder, *options):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, "test_author.py"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=200, check=False)


def test_an_author_trains_on_a_real_server(tmp_path):
    (tmp_path / "test_author.py").write_text(AUTHORS_TEST)
    ran = pytest_of(tmp_path, "-p", "weaver.testing.pytest_plugin")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "1 passed" in ran.stdout


def test_nobody_gets_the_fixtures_unasked(tmp_path):
    (tmp_path / "test_author.py").write_text(AUTHORS_TEST)
    ran = pytest_of(tmp_path)
    assert ran.returncode == 1
    assert "fixture 'weaver_server' not found" in ran.stdout
