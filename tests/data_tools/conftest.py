import pytest

from s1jax.checkpoint.source import resolve_source
from s1jax.decode.engine import load_engine
from s1jax.grading.pool import Grader
from tests.support.quickstart import BASE


@pytest.fixture(scope="module")
def base():
    """The committed base model: its engine and its chat format."""
    return load_engine(resolve_source(BASE), dtype="float32")


@pytest.fixture(scope="module")
def grader():
    """A grader whose workers end with the module."""
    with Grader() as grader:
        yield grader
