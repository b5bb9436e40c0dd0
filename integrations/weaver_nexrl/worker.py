"""The rollout of the recipe: one answer to one prompt, rewarded for each time it says the word.

NexRL loads this file by its path, beside the yaml that names it.
"""

import re
from typing import Any

from nexrl.nexrl_types import Trajectory
from nexrl.rollout_worker import BaseRolloutWorker
from omegaconf import DictConfig


class WordCountWorker(BaseRolloutWorker):
    """Counts `rollout_worker.word` in the answer; `rollout_worker.enough` times is a reward of 1."""

    def __init__(self, config: DictConfig) -> None:
        super().__init__(config)
        self._word = re.compile(rf"\b{re.escape(config.word)}\b", re.IGNORECASE)
        self._enough = int(config.enough)

    def rollout(self, task: dict[str, Any]) -> str | None:
        answer = self._inference_client.generate(messages=list(task["prompt"]))
        said = len(self._word.findall(answer["choices"][0]["message"]["content"]))
        return self._put_trajectory(self._trajectory(task, answer, reward=min(said, self._enough) / self._enough))

    def _trajectory(self, task: dict[str, Any], answer: dict[str, Any], reward: float) -> Trajectory:
        """The tokens exactly as they were sampled; only those of the answer count for the loss."""
        sampled = answer["nexrl_train"]
        prompt, response = sampled["prompt_tokens"], sampled["response_tokens"]
        return Trajectory(
            tokens=prompt + response,
            loss_mask=[0] * len(prompt) + [1] * len(response),
            reward=reward,
            is_val=task.get("is_val", False),
            extra_fields={
                "logprobs": [0.0] * len(prompt) + sampled["response_logprobs"],
                "finish_reason": answer["choices"][0]["finish_reason"],
                "temperature": self._config.temperature,
                "model_tag": self._config.inference_service.identifier,
                "score": {"reward_score": reward, "correct": reward >= 1.0},
                "group_id": task["group_id"],
                "run_id": task["run_id"],
                "task_id": task["task_id"],
            },
        )
