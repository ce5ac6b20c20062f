import pytest

from tests.support.decoding import make_engine


@pytest.fixture(scope="module")
def engine(request):
    """An engine of a tiny random model, which the tests of one file share. A test may name its family (`indirect`)."""
    return make_engine(family=getattr(request, "param", "qwen2"))
