"""`TrainingClient`, where users of Weaver's API import it from."""

from weaver.client.training_client import TrainingClient

__all__ = ["TrainingClient"]
