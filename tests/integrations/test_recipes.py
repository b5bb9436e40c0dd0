"""What the recipes say agrees with what the packages beside them do."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import weaver_nexau
import weaver_nexrl
import yaml
from weaver_nexau.model import with_tools
from weaver_nexau.task import ASKED, KNOWN, SYSTEM, TOOL, conversation, lookup, question
from weaver_nexrl.teacher import ANSWER, datum
from weaver_nexrl.tokenizer import write

from tests.openai.conftest import byte_tokenizer
from weaver.plugins.losses import weaver_losses

WORDS = Path(weaver_nexrl.__file__).parent
AGENT = Path(weaver_nexau.__file__).parent / "recipe"


def read(path):
    return yaml.safe_load(path.read_text())


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("name", ["agent.yaml", "token_agent.yaml"])
def test_an_agent_is_told_what_the_warm_up_was_about(name):
    agent, tool = read(AGENT / name), read(AGENT / "lookup.tool.yaml")
    function = TOOL["function"]
    assert agent["system_prompt"] == SYSTEM
    assert (tool["name"], tool["description"], tool["input_schema"]) == (
        function["name"],
        function["description"],
        function["parameters"],
    )
    assert [one["binding"] for one in agent["tools"]] == ["weaver_nexau.task:lookup"]


def test_the_two_agents_differ_in_how_they_reach_the_model_only():
    plain, tokens = read(AGENT / "agent.yaml"), read(AGENT / "token_agent.yaml")
    assert plain["llm_config"].pop("api_type") == "openai_chat_completion"
    assert tokens["llm_config"].pop("api_type") == "generate_with_token"
    assert tokens["llm_config"].pop("tokenizer_path") == "${env.TOKENIZER_PATH}"
    assert plain == tokens


def test_the_questions_are_about_people_the_warm_up_did_not_know():
    asked = lines(AGENT / "questions.jsonl")
    assert {one["name"] for one in asked} == set(ASKED)
    assert all(one["query"] == question(one["name"]) for one in asked)
    assert not set(ASKED) & set(KNOWN)
    assert all(lookup(name).isdecimal() and len(lookup(name)) == 2 for name in (*ASKED, *KNOWN))


def test_the_prompts_are_conversations_that_fill_every_step():
    asked, recipe = lines(WORDS / "prompts.jsonl"), read(WORDS / "common.yaml")
    assert len(asked) == recipe["trainer"]["total_train_steps"] * recipe["data"]["batch_size"]
    assert len({one["prompt"][0]["content"] for one in asked}) == len(asked)
    assert all(recipe["rollout_worker"]["word"] in one["prompt"][0]["content"] for one in asked)


def test_the_teacher_says_what_the_recipe_rewards_with_all_there_is(tokenizer):
    recipe = read(WORDS / "common.yaml")["rollout_worker"]
    assert len(re.findall(rf"\b{recipe['word']}\b", ANSWER)) >= recipe["enough"]
    made = datum(tokenizer, lines(WORDS / "prompts.jsonl")[0]["prompt"])
    counts = np.asarray(made.loss_fn_inputs["weights"]) > 0
    said = np.asarray(made.loss_fn_inputs["target_tokens"])[counts]
    assert tokenizer.decode(said) == ANSWER + tokenizer.eos_token
    assert tokenizer.decode(made.model_input.to_ints()[: -len(said) + 1]).endswith("<|im_start|>assistant\n")


def test_the_distilling_recipe_is_the_one_through_weavers_api_with_a_teacher():
    recipe = read(WORDS / "distill.yaml")
    assert recipe["defaults"] == ["weaver", "_self_"]
    assert recipe["trainer"]["teachers"] == [
        {"base_model": "${service.inference_service.model}", "checkpoint": "${oc.env:TEACHER_PATH}"}
    ]


@pytest.mark.parametrize("path", [WORDS / "common.yaml", AGENT / "weaver.yaml"])
def test_a_step_waits_for_as_many_answers_as_it_asks_for_and_names_a_loss_there_is(path):
    recipe = read(path)
    answers = recipe["data"]["batch_size"] * recipe["data"]["rollout_repeat_n"]
    assert recipe["trajectory_pool"]["batch_size"] == recipe["rollout_worker"]["num_workers"] == answers
    trained = recipe["service"]["train_service"]["main_actor"]["config"]["loss_fn"]
    assert trained in {loss.name for loss in weaver_losses()}


def test_a_tokenizer_for_transformers_4_is_the_same_tokenizer(tmp_path, folder, tokenizer):
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"tokenizer_class": "TokenizersBackend"}))
    write(folder, tmp_path / "tokenizer")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    told = json.loads((tmp_path / "tokenizer/tokenizer_config.json").read_text())
    assert told["tokenizer_class"] == "PreTrainedTokenizerFast"
    found = type(tokenizer).from_pretrained(tmp_path / "tokenizer")
    assert found.chat_template == tokenizer.chat_template
    assert found.encode("the very tin") == tokenizer.encode("the very tin")


def test_a_model_without_tools_gets_a_template_that_has_them(tmp_path):
    source = tmp_path / "source"
    byte_tokenizer("{{ messages[0].content }}").save_pretrained(source)
    with_tools(source, tmp_path / "model")
    found = byte_tokenizer("").from_pretrained(tmp_path / "model")
    text = found.apply_chat_template(conversation("Ada"), tools=[TOOL], tokenize=False)
    assert '<tool_call>{"name": "lookup", "arguments": {"name": "Ada"}}</tool_call><|im_end|>' in text
    assert text.index("Tools:") < text.index("Ada's number?")
