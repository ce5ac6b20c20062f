import pytest

from s1jax.checkpoint.source import resolve_source
from s1jax.decode.engine import load_engine
from tests.support.quickstart import BASE


@pytest.fixture(scope="module")
def base():
    """The committed base model: its engine and its chat format."""
    return load_engine(resolve_source(BASE), dtype="float32")
