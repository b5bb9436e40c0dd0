"""The clients, and what they return."""

from weaver.compat.tinker.lib.public_interfaces.admin_client import AdminClient
from weaver.compat.tinker.lib.public_interfaces.api_future import APIFuture, AwaitableConcurrentFuture
from weaver.compat.tinker.lib.public_interfaces.backcompat_sampling_client_future import BackcompatSamplingClientFuture
from weaver.compat.tinker.lib.public_interfaces.backcompat_training_client_future import BackcompatTrainingClientFuture
from weaver.compat.tinker.lib.public_interfaces.custom_loss import LossHandle, PerDatumLossFn
from weaver.compat.tinker.lib.public_interfaces.rest_client import RestClient
from weaver.compat.tinker.lib.public_interfaces.sampling_client import SamplingClient
from weaver.compat.tinker.lib.public_interfaces.service_client import ServiceClient
from weaver.compat.tinker.lib.public_interfaces.training_client import TrainingClient

__all__ = [
    "APIFuture",
    "AdminClient",
    "AwaitableConcurrentFuture",
    "BackcompatSamplingClientFuture",
    "BackcompatTrainingClientFuture",
    "LossHandle",
    "PerDatumLossFn",
    "RestClient",
    "SamplingClient",
    "ServiceClient",
    "TrainingClient",
]
