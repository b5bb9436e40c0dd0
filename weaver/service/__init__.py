"""The front door: everything a client can do, for every protocol and for clients in process."""

from weaver.service.records import CheckpointInfo, ModelInfo, SamplerInfo, SampleTicket, SupportedModel, Ticket
from weaver.service.service import Service

__all__ = ["CheckpointInfo", "ModelInfo", "SampleTicket", "SamplerInfo", "Service", "SupportedModel", "Ticket"]
