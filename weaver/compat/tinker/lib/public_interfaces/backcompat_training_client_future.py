"""The future of a training client."""

from weaver.compat.tinker.lib.public_interfaces.backcompat_client_future import BackcompatClientFuture, forwards_to
from weaver.compat.tinker.lib.public_interfaces.training_client import TrainingClient


@forwards_to(TrainingClient)
class BackcompatTrainingClientFuture(BackcompatClientFuture[TrainingClient], TrainingClient):
    """See `BackcompatClientFuture`."""
