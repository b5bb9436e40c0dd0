"""`TrainingClient` and `AsyncTrainingClient`, where users of Weaver's API import them from. What their methods return
is in the stub beside this file."""

from weaver.client.training_client import AsyncTrainingClient, TrainingClient

__all__ = ["AsyncTrainingClient", "TrainingClient"]
