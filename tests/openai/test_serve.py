"""`weaver serve` as a user starts it, with the demo model, asked by the official client only."""

import asyncio
import re
import signal
import subprocess
import sys
from pathlib import Path

import openai
import pytest

pytestmark = pytest.mark.demo_model

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    command = [sys.executable, "-m", "weaver.server.cli", "serve", "--port", "0", "--api-key", "tml-right"]
    command += ["--data-dir", str(tmp_path_factory.mktemp("data")), "--device", "cpu"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        line = next(line for line in server.stdout if " ready: " in line)
        yield line.split(" ready: ")[1].split()[0]
    finally:
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0


def ask(client, **more):
    return client.chat.completions.create(**({"model": MODEL, "messages": QUESTION, "temperature": 0} | more))


def test_a_question_is_answered_whole_and_as_a_stream(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="tml-right", max_retries=0) as client:
        answer = ask(client, max_tokens=40)
        assert "Paris" in answer.choices[0].message.content
        assert answer.choices[0].finish_reason == "stop"
        told = [chunk.choices[0].delta.content or "" for chunk in ask(client, max_tokens=40, stream=True)]
        assert "".join(told) == answer.choices[0].message.content
        assert len(told) > 3
        assert [model.id for model in client.models.list().data] == [MODEL]


def test_fifty_clients_at_once_are_answered(url):
    async def ask_all():
        async with openai.AsyncOpenAI(base_url=f"{url}/oai/api/v1", api_key="tml-right", max_retries=0) as client:
            asked = [ask(client, max_tokens=8, temperature=1, seed=seed) for seed in range(50)]
            return await asyncio.gather(*asked)

    answers = asyncio.run(ask_all())
    assert {len(answer.nexrl_train["response_tokens"]) <= 8 for answer in answers} == {True}
    assert len({answer.id for answer in answers}) == 50
    assert len({tuple(answer.nexrl_train["response_tokens"]) for answer in answers}) > 25


def test_a_wrong_key_is_refused(url):
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="tml-wrong", max_retries=0)
    with client, pytest.raises(openai.AuthenticationError, match="holds none of this server's keys"):
        ask(client)


def test_a_template_without_tools_says_so(url):
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="tml-right", max_retries=0)
    with client, pytest.raises(openai.BadRequestError, match="tools: the chat template of") as refused:
        ask(client, tools=[tool])
    assert "has no place for them" in str(refused.value)


def test_the_documents_program_runs(url):
    text = (Path(__file__).parents[2] / "docs/openai.md").read_text()
    [program] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    program = program.replace("http://127.0.0.1:8000", url).replace("tml-local", "tml-right")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert MODEL in done.stdout
