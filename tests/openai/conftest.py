"""A real server of a tiny model that speaks bytes, whose chat template knows tools and reasoning as Qwen's do."""

import openai
import pytest
import tinker
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from tests.serving import serving
from weaver.backend import ModelSource
from weaver.config import Config
from weaver.service import Service

MODEL, PLAIN = "tiny/bytes", "tiny/plain"
CONTEXT = 1024
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TAGS = ("<think>", "</think>", "<tool_call>", "</tool_call>")

TEMPLATE = """
{%- if tools %}<|im_start|>system
{% if messages[0].role == 'system' %}{{ messages[0].content + '\n\n' }}{% endif %}Tools:
{%- for tool in tools %}
{{ tool | tojson }}{% endfor %}<|im_end|>
{% elif messages[0].role == 'system' %}<|im_start|>system
{{ messages[0].content }}<|im_end|>
{% endif %}
{%- for message in messages %}
{%- if message.role == 'assistant' %}<|im_start|>assistant
{% if message.reasoning_content %}<think>
{{ message.reasoning_content }}
</think>

{% endif %}{{ message.content }}
{%- for call in message.tool_calls or [] %}
{%- if not loop.first or message.content %}{{ '\n' }}{% endif %}<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>
{%- endfor %}<|im_end|>
{% elif message.role == 'tool' %}<|im_start|>user
<tool_response>
{{ message.content }}
</tool_response><|im_end|>
{% elif message.role == 'user' %}<|im_start|>user
{{ message.content }}<|im_end|>
{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and enable_thinking is false %}<think>

</think>

{% endif %}{% endif %}"""

PLAIN_TEMPLATE = """{% for message in messages %}<|im_start|>{{ message['role'] + '\n' + message['content'] }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def byte_tokenizer(template):
    """A token for every byte, some for words, and those that templates write."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("i", "n")]
    vocabulary = {piece: place for place, piece in enumerate([*letters, *(left + right for left, right in words)])}
    tokenizer = Tokenizer(models.BPE(vocabulary, words))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in SPECIAL])
    tokenizer.add_tokens([AddedToken(name, normalized=False) for name in TAGS])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.chat_template = template
    return fast


def write_model(folder, template, context=CONTEXT):
    torch.manual_seed(0)
    tokenizer = byte_tokenizer(template)
    tokenizer.save_pretrained(folder)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=context,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    templates = {MODEL: TEMPLATE, PLAIN: PLAIN_TEMPLATE}
    return {name: write_model(root / name, template) for name, template in templates.items()}


@pytest.fixture(scope="session")
def tokenizer(folders):
    return PreTrainedTokenizerFast.from_pretrained(folders[MODEL])


def open_service(folders, data_dir, **settings):
    sources = tuple(ModelSource(name, str(folder), "cpu") for name, folder in folders.items())
    return Service(Config(models=sources, data_dir=data_dir, **settings))


@pytest.fixture(scope="session")
def service(folders, tmp_path_factory):
    running = open_service(folders, tmp_path_factory.mktemp("data"))
    yield running
    running.close()


@pytest.fixture(scope="session")
def url(service):
    with serving(service) as address:
        yield address


@pytest.fixture(scope="session")
def client(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="tml-any", max_retries=0) as client:
        yield client


@pytest.fixture(scope="session")
def trainer(url):
    """A training client of Tinker's SDK on the same server, for a whole module of tests."""
    return tinker.ServiceClient(base_url=url, api_key="tml-any")


QUESTION = {"role": "user", "content": "What is 2 + 3?"}
TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds.",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}},
    },
}
THOUGHT = "I add."
CALLED = '{"name": "add", "arguments": {"a": 2, "b": 3}}'
FIRST_REPLY = f"<think>\n{THOUGHT}\n</think>\n\n<tool_call>\n{CALLED}\n</tool_call><|im_end|>"
SECOND_REPLY = "It is 5: 五.<|im_end|>"


def lesson(tokenizer, messages, reply):
    """What teaches a model to answer a conversation with a reply."""
    prompt = tokenizer.apply_chat_template(messages, tools=[TOOL], add_generation_prompt=True, return_dict=False)
    answer = tokenizer.encode(reply)
    tokens = prompt + answer
    weights = [0.0] * (len(prompt) - 1) + [1.0] * len(answer)
    return tinker.Datum(tinker.ModelInput.from_ints(tokens[:-1]), {"target_tokens": tokens[1:], "weights": weights})


@pytest.fixture(scope="session")
def tool_user(trainer, tokenizer):
    """The path of a snapshot that has learned to think, to call a tool, and to answer with what it gave back."""
    call = {"name": "add", "arguments": {"a": 2, "b": 3}}
    called = {"role": "assistant", "content": "", "reasoning_content": THOUGHT, "tool_calls": [{"function": call}]}
    lessons = [
        lesson(tokenizer, [QUESTION], FIRST_REPLY),
        lesson(tokenizer, [QUESTION, called, {"role": "tool", "content": "5"}], SECOND_REPLY),
    ]
    student = trainer.create_lora_training_client(MODEL, rank=16, seed=0).result()
    for _ in range(60):
        passed = student.forward_backward(lessons, "cross_entropy")
        student.optim_step(tinker.AdamParams(learning_rate=0.02))
        if passed.result().metrics["loss:sum"] < 0.5:
            break
    return student.save_weights_for_sampler("tool-user").result().path
