"""A run's objects, from overrides."""

import pytest

from batch_renorm.running.build import build
from tests.conftest import TINY


@pytest.fixture
def made(compose):
    def of(*overrides):
        return build({k: v for k, v in compose(*TINY, *overrides).items() if k != "fresh"})

    return of
