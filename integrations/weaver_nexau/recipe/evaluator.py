"""The reward of an agent's run, as NexRL asks for it."""

from typing import Any

from nexrl.rollout_worker import EvaluationRunResult, Evaluator
from weaver_nexau.task import lookup, reward


class NumberEvaluator(Evaluator):
    """Reads the tool calls from what the agent did, and the number from what it said last."""

    def evaluate(self, data: dict[str, Any], evaluation_target: Any) -> EvaluationRunResult:
        calls = [
            (block.name, block.input)
            for message in evaluation_target.observation
            for block in message.content
            if block.type == "tool_use"
        ]
        earned = reward(data["name"], calls, evaluation_target.final_answer)
        return EvaluationRunResult(
            reward=earned, ground_truth=lookup(data["name"]), metrics={"calls": float(len(calls))}, extra_info={}
        )
