"""`check_sampler` holds for the sampler `vllm`."""

import pytest
from engines import source_of

from weaver.registry import load_registry
from weaver.testing import check_sampler
from weaver.testing.reference import FAMILIES

pytestmark = pytest.mark.timeout(900)
VLLM = load_registry().sampler("vllm")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_sampler_vllm_keeps_the_contract(vllm_python, family):
    check_sampler(VLLM, families=[family], tolerance=1e-4, options=source_of("").options)
