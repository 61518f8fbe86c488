"""A run's objects, from overrides."""

import pytest

from batch_renorm.running.build import build
from tests.conftest import TINY


@pytest.fixture
def made(compose):
    return lambda *overrides: build(compose(*TINY, *overrides))
