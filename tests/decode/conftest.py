import pytest

from tests.support.decoding import make_engine


@pytest.fixture(scope="module")
def engine():
    """An engine of a tiny random model, which the tests of one file share."""
    return make_engine()
