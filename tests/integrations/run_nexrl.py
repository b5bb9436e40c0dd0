"""Train with unmodified NexRL on weaver, and print each step's mean reward:

    python tests/integrations/run_nexrl.py --nexrl NEXRL [--nexau NEXAU] [--way WAY]... [--steps 20] [OVERRIDE]...

NEXRL and NEXAU are checkouts of the public repositories; `make nexrl` installs what they need. The ways: `nex-weaver`,
`weaver` (this package in its place), `tinker`, `distill` (from a teacher's logprobs); with NexAU `agent` (over the
OpenAI endpoint) and `token-agent`. The status is 1 where a run failed or the reward did not rise. OVERRIDE are Hydra's,
such as data.rollout_repeat_n=4.
"""

import argparse
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
INTEGRATIONS = ROOT / "integrations"
ENVIRONMENT = ROOT / ".venvs/nexrl"
NEX_WEAVER = ROOT / ".venvs/nexrl-nex-weaver"
READY = re.compile(r"^weaver \S+ ready: (\S+) serving ", re.MULTILINE)
REWARD = re.compile(r"rollout metrics: .*?'rollout/reward_mean': (?:np\.float64\()?([0-9.e-]+)")
RISE = 0.1
LIMIT = 7200


@dataclass(frozen=True)
class Way:
    """`weaver` says which package of that name NexRL imports; `taught`, that the server trains a teacher first."""

    recipe: Path
    config: str
    model: str
    weaver: Path
    agent: bool = False
    taught: bool = False
    overrides: tuple[str, ...] = ()


WORDS, AGENT = INTEGRATIONS / "weaver_nexrl", INTEGRATIONS / "weaver_nexau/recipe"
TOKENS = (
    "rollout_worker.custom_rollout_worker_class_name=TokenAgentWorker",
    "rollout_worker.nexau_agent_config_path=token_agent.yaml",
)
DEMO = "HuggingFaceTB/SmolLM2-135M-Instruct"
WAYS = {
    "nex-weaver": Way(WORDS, "weaver", DEMO, NEX_WEAVER),
    "weaver": Way(WORDS, "weaver", DEMO, ROOT),
    "tinker": Way(WORDS, "tinker", "Qwen/Qwen3-4B-Instruct-2507", NEX_WEAVER),
    "distill": Way(WORDS, "distill", DEMO, NEX_WEAVER, taught=True),
    "agent": Way(AGENT, "weaver", "number-agent", NEX_WEAVER, agent=True),
    "token-agent": Way(AGENT, "weaver", "number-agent", ROOT, agent=True, overrides=TOKENS),
}


@contextmanager
def served(name: str, folder: Path, work: Path) -> Iterator[str]:
    """The URL of a server of that model, which lives as long as the block."""
    command = [str(Path(sys.executable).with_name("weaver")), "serve", "--port", "0"]
    command += ["--data-dir", str(work / "data"), "--model", f"{name}={folder}"]
    log = work / "server.log"
    with log.open("wb") as file:
        server = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    try:
        while not (ready := READY.search(log.read_text(errors="replace"))):
            if server.poll() is not None:
                sys.exit(f"the server ended with status {server.returncode}; its log is {log}")
            time.sleep(0.1)
        yield ready[1]
    finally:
        server.terminate()
        server.wait()


def settings(way: Way, url: str, tokenizer: Path, sources: list[Path]) -> dict[str, str]:
    found = [*sources, INTEGRATIONS, way.weaver]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, found)),
        "TRAIN_CONFIG": str(way.recipe / f"{way.config}.yaml"),
        "NEXRL_DATA_PATH": str(way.recipe),
        "TOKENIZER_PATH": str(tokenizer),
        "WEAVER_BASE_URL": url,
        "WEAVER_API_KEY": "local",
        "WEAVER_OPERATION_POLL_INTERVAL": "0.05",
        "TINKER_BASE_URL": url,
        "TINKER_API_KEY": "tml-local",
        "TINKER_TELEMETRY": "0",
        "LLM_BASE_URL": f"{url}/v1",
        "LLM_API_KEY": "local",
        "LLM_MODEL": way.model,
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def run(name: str, folder: Path, tokenizer: Path, asked: argparse.Namespace) -> list[float]:
    """Each step's mean reward; they are printed as they come."""
    way, work = WAYS[name], asked.work / name
    work.mkdir(parents=True, exist_ok=True)
    sources = [one for one in (asked.nexrl, asked.nexau) if one is not None]
    command = [str(ENVIRONMENT / "bin/python"), "-m", "nexrl.main", f"--config-path={way.recipe}"]
    command += [f"--config-name={way.config}", f"trainer.total_train_steps={asked.steps}"]
    command += [f"hydra.run.dir={work / 'hydra'}", *way.overrides, *asked.override]
    rewards: list[float] = []
    with served(way.model, folder, work) as url, (work / "nexrl.log").open("w") as log:
        told = settings(way, url, tokenizer, sources) | {"EXPERIMENT_PATH": str(work / "experiment")}
        if way.taught:
            told["TEACHER_PATH"] = teacher(url)
        nexrl = subprocess.Popen(
            command, env=told, cwd=work, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        for line in nexrl.stdout:
            log.write(line)
            log.flush()
            if found := REWARD.search(line):
                rewards.append(float(found[1]))
                print(f"{name} step {len(rewards)}/{asked.steps}: mean reward {rewards[-1]:.3f}", flush=True)
        if nexrl.wait(LIMIT) != 0 or len(rewards) < asked.steps:
            sys.exit(f"{name}: NexRL ended with status {nexrl.returncode} after {len(rewards)} steps: {work}/nexrl.log")
    return rewards


def teacher(url: str) -> str:
    """The path of a teacher's weights."""
    told = os.environ | {"WEAVER_BASE_URL": url, "WEAVER_API_KEY": "local"}
    command = [sys.executable, "-m", "weaver_nexrl.teacher"]
    said = subprocess.run(command, env=told, text=True, stdout=subprocess.PIPE, check=True).stdout.splitlines()
    print(*said[:-1], sep="\n", flush=True)
    return said[-1]


def rose(rewards: list[float]) -> bool:
    """The mean of the last quarter against that of the first."""
    quarter = max(1, len(rewards) // 4)
    return sum(rewards[-quarter:]) / quarter > sum(rewards[:quarter]) / quarter + RISE


def prepared(way: Way, work: Path) -> tuple[Path, Path]:
    """The folders of the model that is served and of its tokenizer for NexRL; made when they are first needed."""
    if way.agent:
        folder = work / "number-agent"
        if not folder.exists():
            subprocess.run([sys.executable, "-m", "weaver_nexau.model", str(folder)], check=True, cwd=work)
        return folder, folder
    from weaver_nexrl.tokenizer import write
    from weaver_peft.demo_model import demo_model_folder

    write(demo_model_folder(), work / "tokenizer")
    return demo_model_folder(), work / "tokenizer"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nexrl", type=Path, required=True, help="a checkout of nex-agi/NexRL")
    parser.add_argument("--nexau", type=Path, help="a checkout of nex-agi/NexAU")
    parser.add_argument("--way", action="append", choices=WAYS, help="repeatable; without: all that can be run")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--work", type=Path, default=ROOT / "demo-output/nexrl", help="where logs and checkpoints go")
    parser.add_argument("override", nargs="*", help="of the recipe, as Hydra takes them")
    asked = parser.parse_args()
    asked.work = asked.work.resolve()
    asked.work.mkdir(parents=True, exist_ok=True)
    failed = []
    for name in asked.way or [name for name, way in WAYS.items() if asked.nexau or not way.agent]:
        rewards = run(name, *prepared(WAYS[name], asked.work), asked)
        print(f"{name}: {rewards[0]:.3f} -> {rewards[-1]:.3f}", flush=True)
        failed += [] if asked.steps < 8 or rose(rewards) else [name]
    if failed:
        sys.exit(f"the reward did not rise: {', '.join(failed)}")


if __name__ == "__main__":
    main()
