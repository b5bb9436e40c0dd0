"""NexRL's worker for the agent: NexAU samples from the weights that NexRL trains, and from no others.

NexRL hands NexAU a client of its own, which NexAU since 0.4.1 does not use with OpenAI's API. So the agent is told the
path of the newest weights instead, as the model's name. With `api_type: generate_with_token` it gets one that it uses.
"""

import threading
from collections.abc import Callable
from typing import Any

from nexrl.rollout_worker import DefaultNexAURolloutWorker
from omegaconf import DictConfig
from weaver_nexau.token_client import TokenClient


class AgentWorker(DefaultNexAURolloutWorker):
    """Agents over weaver's OpenAI endpoint: `model` is the path of the weights."""

    def load_agent_from_config(self, custom_llm_client_provider: Callable[[], Any] | None = None) -> tuple[Any, Any]:
        agent, provider = super().load_agent_from_config(custom_llm_client_provider)
        agent.config.llm_config.model = self._holder.get_current_sampling_path()
        return agent, provider

    @property
    def _holder(self) -> Any:
        return self._inference_client._service_holder


class TokenAgentWorker(AgentWorker):
    """Agents that write their prompts themselves and send tokens, through a sampling client of the same weights."""

    def __init__(self, config: DictConfig) -> None:
        super().__init__(config)
        self._clients: dict[str, TokenClient] = {}
        self._opening = threading.Lock()

    def load_agent_from_config(self, custom_llm_client_provider: Callable[[], Any] | None = None) -> tuple[Any, Any]:
        agent, _ = super().load_agent_from_config(custom_llm_client_provider)
        path = agent.config.llm_config.model
        return agent, lambda agent_name: self._client(path)

    def _client(self, path: str) -> TokenClient:
        """The client of these weights; those of earlier ones are not needed any more."""
        with self._opening:
            if path not in self._clients:
                service, base_model = self._holder.get_service_client(), self._config.inference_service.model
                self._clients = {
                    path: TokenClient(service.create_sampling_client(model_path=path, base_model=base_model))
                }
            return self._clients[path]
