"""Batches by tokens and steps ahead, where users of Weaver's API import them from."""

from weaver.client.pipeline import CompletedTrainingStep, SubmitAheadQueue, TokenBudgetBatch, TokenBudgetBatcher

__all__ = ["CompletedTrainingStep", "SubmitAheadQueue", "TokenBudgetBatch", "TokenBudgetBatcher"]
