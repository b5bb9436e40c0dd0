"""What the sampler may keep is a part of what the machine has."""

from types import SimpleNamespace

import psutil
import pytest
import torch
from weaver_peft.sampler import GIB, default_limits


@pytest.mark.parametrize(("free", "cache", "adapters"), [(8 * GIB, 2 * GIB, GIB // 4), (64 * GIB, 16 * GIB, GIB)])
def test_a_small_machine_keeps_less(monkeypatch, free, cache, adapters):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=free))
    limits = default_limits(torch.device("cpu"))
    assert (limits.cache_bytes, limits.adapter_bytes) == (cache, adapters)
