"""The recipes, their arguments, and what proves that each learned. The numbers are for SmolLM2-135M on two cores."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from criteria import (
    KL,
    NLL,
    REWARD,
    Criterion,
    all_of,
    begins_above,
    begins_at,
    begins_below,
    falls,
    falls_to,
    goes_on_at,
    has_gone_further,
    lags,
    logs_at,
    passes,
    reaches,
    repeats,
    rises_by,
    rolls,
    saves,
    stays_within,
    trains,
)

RELEASES = ("0.6.1", "0.5.8")

CHAT = "Qwen/Qwen3-4B-Instruct-2507"
BASE = "meta-llama/Llama-3.2-1B"
GUESSER = "Qwen/Qwen3-30B-A3B-Instruct-2507"
"""Names that the cookbook knows; the demo model stands for each, and for the last one what `guess_sft` made of it."""


@dataclass(frozen=True)
class Case:
    """A recipe to run. `{log}` in an argument is the case's log folder, `{CASE.KEY}` a path that another case saved.

    `seeded_by`: the case whose state the recipe finds in its log folder, as if it had saved it itself.
    `killed_after`: the step whose numbers are awaited before the recipe is killed; then it runs again.
    `merged_from`: the case whose adapter becomes the base model GUESSER.
    `tests`: upstream's own test files, run by pytest instead of a recipe.
    """

    name: str
    criterion: Criterion
    module: str = ""
    arguments: tuple[str, ...] = ()
    releases: tuple[str, ...] = RELEASES
    needs: tuple[str, ...] = ()
    workbench: str = "recipes"
    log: str = ""
    seeded_by: str | None = None
    killed_after: int | None = None
    merged_from: str | None = None
    tests: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    minutes: float = 15.0


def _recipe(name: str, module: str, arguments: str, criterion: Criterion, **more: object) -> Case:
    return Case(name, criterion, f"tinker_cookbook.recipes.{module}", tuple(arguments.split()), **more)  # type: ignore[arg-type]


_RUN = f"log_path={{log}} behavior_if_log_dir_exists=resume model_name={CHAT}"
_PICK = "lora_rank=8 learning_rate=3e-4 max_tokens=12"
_SFT = "batch_size=8 max_length=256 lora_rank=8 learning_rate=1e-3 eval_every=0 train_on_what=last_assistant_message"
_PICK_RL = f"{_RUN} env=gsm8k load_checkpoint_path={{pick_sft.state_path}} groups_per_batch=2 group_size=8 {_PICK}"
_LEARNS_TO_PICK = all_of(reaches(REWARD, 0.9, from_below=0.7), stays_within(KL, 1e-3))

_RL_LOOP = f"log_path={{log}} model_name={CHAT} batch_size=2 group_size=8 {_PICK} max_steps=6 save_every=3"
_ARITHMETIC = (
    f"{_RUN} env=arithmetic groups_per_batch=4 group_size=8 max_tokens=8 lora_rank=8 learning_rate=5e-4 max_steps=6 "
    "eval_every=0 save_every=0"
)
_RL_BASIC = f"log_path={{log}} model_name={CHAT} learning_rate=2e-3 max_tokens=12 eval_every=1 save_every=0"
_SL_LOOP = f"log_path={{log}} model_name={BASE} batch_size=8 max_length=128 lora_rank=8 learning_rate=1e-3"
_SDFT = (
    f"{_RUN} groups_per_batch=8 group_size=1 max_tokens=24 topk=20 lora_rank=8 learning_rate=5e-4 eval_every=0 "
    "save_every=0"
)

GATE = ("pick_sft", "pick_rl")


def _math_rl_async(name: str, steps: int, stale: Criterion, **more: object) -> Case:
    arguments = f"{_PICK_RL} max_steps={steps} max_steps_off_policy=1 eval_every=0 save_every=0"
    learned = all_of(reaches(REWARD, 0.9, from_below=0.7), stale, trains(4))
    return _recipe(name, "math_rl.train", arguments, learned, needs=("pick_sft",), **more)


def _rl_loop(loss: str, **more: object) -> Case:
    arguments = (
        f"log_path={{log}} model_name={CHAT} loss_fn={loss} batch_size=2 group_size=8 {_PICK} max_steps=6 save_every=3"
    )
    learned = all_of(reaches("reward/total", 0.9, from_below=0.7), trains(3))
    return _recipe(f"rl_loop_{loss}", "rl_loop", arguments, learned, needs=("pick_sft",), seeded_by="pick_sft", **more)


CASES = (
    _recipe(
        "pick_sft",
        "chat_sl.train",
        f"{_RUN} dataset=pick.jsonl {_SFT} max_steps=8 save_every=0",
        all_of(falls(NLL, 0.3, above_at_first=0.8), trains(8), saves("final")),
    ),
    _recipe(
        "pick_rl",
        "math_rl.train",
        f"{_PICK_RL} max_steps=6 eval_every=3 save_every=3",
        all_of(_LEARNS_TO_PICK, logs_at("test/" + REWARD, 0, 3), saves("000003", "final"), trains(4)),
        needs=("pick_sft",),
    ),
    _math_rl_async("math_rl_async", 7, reaches("async/staleness_max", 1), releases=("0.6.1",)),
    # What is too old to train on 0.5.8 draws anew only while it has more to draw from.
    _math_rl_async(
        "math_rl_async_long", 30, lags("sampling_client/step_min", "training_client/step"), releases=("0.5.8",)
    ),
    _recipe(
        "math_rl_arithmetic",
        "math_rl.train",
        _ARITHMETIC,
        all_of(reaches("env/all/format", 0.95, from_below=0.85), stays_within(KL, 1e-3), trains(6)),
    ),
    _recipe(
        "math_rl_stream",
        "math_rl.train",
        f"{_ARITHMETIC} stream_minibatch_config.groups_per_batch=4 stream_minibatch_config.num_minibatches=2 "
        "loss_fn=ppo",
        all_of(reaches("env/all/format", 0.95, from_below=0.85), trains(12)),
    ),
    _recipe(
        "chat_sl",
        "chat_sl.train",
        f"{_RUN} dataset=no_robots {_SFT} max_steps=6 save_every=3 eval_every=3",
        all_of(falls_to(NLL, 0.5), falls_to("test/nll", 0.5), saves("000003", "final"), trains(6)),
    ),
    _recipe(
        "rolling_checkpoints",
        "chat_sl.train",
        f"{_RUN} dataset=no_robots {_SFT} max_steps=6 save_every=3 rolling_save_every=1 rolling_ttl_seconds=3600",
        all_of(falls_to(NLL, 0.5), rolls(3), saves("000003", "final"), trains(6)),
    ),
    _recipe(
        "resume_after_kill",
        "sl_loop",
        f"{_SL_LOOP} max_steps=9 save_every=4",
        all_of(goes_on_at(4), repeats(NLL, 1e-4), falls_to(NLL, 0.5), saves("final")),
        killed_after=6,
    ),
    _recipe(
        "resume_chat_sl_after_kill",
        "chat_sl.train",
        f"{_RUN} dataset=no_robots {_SFT} max_steps=8 save_every=4",
        all_of(goes_on_at(4), has_gone_further(NLL, 4), falls_to(NLL, 0.5), saves("000004", "final")),
        killed_after=5,
    ),
    _recipe(
        "sl_loop",
        "sl_loop",
        f"{_SL_LOOP} max_steps=12 save_every=5",
        all_of(falls_to(NLL, 0.2), trains(12)),
    ),
    _recipe(
        "sl_basic",
        "sl_basic",
        f"log_path={{log}} model_name={BASE} learning_rate=2e-3 lora_rank=8 max_steps=4 eval_every=3",
        all_of(falls_to(NLL, 0.6), falls_to("test/nll", 0.6), trains(4)),
        workbench="fixed-batches",
    ),
    _recipe(
        "rl_basic",
        "rl_basic",
        f"{_RL_BASIC} load_checkpoint_path={{pick_sft.state_path}}",
        all_of(rises_by("test/" + REWARD, 0.15), stays_within(KL, 1e-3), trains(1)),
        needs=("pick_sft",),
        workbench="fixed-batches",
        releases=("0.6.1",),
    ),
    _recipe(
        "rl_basic_first",
        "rl_basic",
        f"{_RL_BASIC} load_checkpoint_path={{pick_sft.state_path}}",
        all_of(stays_within(KL, 1e-3), trains(1), saves("final")),
        needs=("pick_sft",),
        workbench="fixed-batches",
        releases=("0.5.8",),
    ),
    _recipe(
        "rl_basic_then",
        "rl_basic",
        f"{_RL_BASIC} load_checkpoint_path={{rl_basic_first.state_path}}",
        all_of(begins_above("test/" + REWARD, 0.15, "rl_basic_first"), stays_within(KL, 1e-3), trains(1)),
        needs=("pick_sft", "rl_basic_first"),
        workbench="fixed-batches",
        releases=("0.5.8",),
    ),
    _rl_loop("stable_reinforce", releases=("0.6.1",)),
    _rl_loop("importance_sampling", releases=("0.6.1",)),
    _rl_loop("cispo", releases=("0.6.1",)),
    _rl_loop("gspo", releases=("0.6.1",)),
    _recipe(
        "rl_loop",
        "rl_loop",
        _RL_LOOP,
        all_of(reaches("reward/total", 0.9, from_below=0.7), trains(3)),
        needs=("pick_sft",),
        seeded_by="pick_sft",
        releases=("0.5.8",),
    ),
    _recipe(
        "prompt_distillation",
        "prompt_distillation.train",
        f"{_RUN} file_path=languages.jsonl batch_size=8 max_length=128 lora_rank=8 learning_rate=1e-3 max_steps=8 "
        "eval_every=0 save_every=0",
        all_of(falls_to(NLL, 0.3), trains(8)),
    ),
    _recipe(
        "guess_sft",
        "chat_sl.train",
        f"{_RUN} dataset=guess.jsonl {_SFT} max_steps=12 save_every=0",
        all_of(falls_to(NLL, 0.7), trains(12)),
    ),
    _recipe(
        "guess_number",
        "multiplayer_rl.guess_number.train",
        f"log_path={{log}} behavior_if_log_dir_exists=resume model_name={GUESSER} renderer_name=qwen3_instruct "
        "batch_size=1 group_size=5 learning_rate=1e-3 max_tokens=8 max_steps=4 eval_every=0 save_every=0",
        all_of(rises_by(REWARD, 2.0), stays_within(KL, 1e-3), trains(4)),
        needs=("guess_sft",),
        merged_from="guess_sft",
        minutes=30,
    ),
    _recipe(
        "dpo",
        "preference.dpo.train",
        f"{_RUN} dataset=hhh batch_size=4 max_length=96 learning_rate=3e-4 max_steps=4",
        all_of(begins_at("dpo_loss", 0.6931, 1e-3), falls("dpo_loss", 0.3), reaches("margin", 1.0), trains(4)),
    ),
    _recipe(
        "shorter",
        "preference.shorter.train",
        f"{_RUN} renderer_name=qwen3_instruct batch_size=2 group_size=8 max_tokens=32 learning_rate=6e-4 max_steps=8 "
        "eval_every=0",
        all_of(falls_to("env/all/ac_tokens_per_turn", 0.85), stays_within(KL, 1e-3), trains(6)),
    ),
    _recipe(
        "rlhf_pipeline",
        "preference.rlhf.rlhf_pipeline",
        f"base_model={BASE} short_name=tiny batch_size=8 max_length=128 lora_rank=8 sft_learning_rate=1e-3 "
        "rm_learning_rate=1e-3 rl_learning_rate=1e-4 rl_max_tokens=12 rl_group_size=4 max_steps=6 eval_every=0 "
        "save_every=0",
        all_of(falls_to(NLL, 0.5, "sft"), falls_to(NLL, 0.5, "rm"), stays_within(KL, 1e-3, "rl"), trains(13)),
        log="rlhf-tiny",
    ),
    _recipe(
        "on_policy_distillation",
        "distillation.on_policy_distillation",
        f"{_RUN} teacher_model={CHAT} teacher_checkpoint={{pick_sft.sampler_path}} dataset=deepmath "
        "groups_per_batch=4 group_size=4 max_tokens=12 lora_rank=8 learning_rate=1e-3 max_steps=6 eval_every=0 "
        "save_every=3",
        all_of(falls_to("teacher_kl", 0.6), stays_within(KL, 1e-3), trains(6)),
        needs=("pick_sft",),
    ),
    _recipe(
        "off_policy_reasoning",
        "distillation.off_policy_reasoning",
        f"{_RUN} renderer_name=qwen3_instruct batch_size=8 max_prompts=64 buffer_size=64 max_length=96 lora_rank=8 "
        "learning_rate=1e-3 max_steps=6 eval_every=0 save_every=0",
        all_of(falls_to(NLL, 0.5), trains(6)),
    ),
    _recipe(
        "sdft_topk",
        "sdft.train",
        f"{_SDFT} max_steps=5 load_checkpoint_path={{chat_sl.state_path}}",
        all_of(trains(5), saves("final")),
        needs=("chat_sl",),
    ),
    _recipe(
        "sdft_reverse",
        "sdft.train",
        f"{_SDFT} max_steps=5 reverse=True load_checkpoint_path={{chat_sl.state_path}}",
        all_of(falls_to("sdft/reverse_kl_mean", 0.7), trains(5)),
        needs=("chat_sl",),
    ),
    _recipe(
        "sdft_after_topk",
        "sdft.train",
        f"{_SDFT} max_steps=1 reverse=True load_checkpoint_path={{sdft_topk.state_path}}",
        all_of(begins_below("sdft/reverse_kl_mean", 0.8, "sdft_reverse"), trains(1)),
        needs=("sdft_topk", "sdft_reverse"),
    ),
    Case(
        "upstream_chat_sl",
        passes(4),
        tests=("tests/recipes/test_recipe_chat_sl.py", "tests/recipes/test_recipe_rolling_checkpoints.py"),
        workbench="upstream",
        minutes=30,
    ),
    Case("upstream_math_rl", passes(3), tests=("tests/recipes/test_recipe_math_rl.py",), workbench="upstream"),
    Case(
        "upstream_off_policy_reasoning",
        passes(1),
        tests=("tests/recipes/test_recipe_off_policy_reasoning.py",),
        workbench="upstream",
    ),
    Case(
        "upstream_weights_lifecycle",
        passes(1),
        tests=("tests/weights/test_lifecycle.py",),
        workbench="upstream-untied",
        releases=("0.6.1",),  # 0.5.8 downloads by a method that the SDK 0.38.0 no longer has
    ),
)
