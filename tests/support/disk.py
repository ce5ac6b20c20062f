"""A disk without room: a limit on the size of files, which the kernel reports as it reports a full disk, with an OSError of a write."""

import contextlib
import resource
from collections.abc import Iterator


@contextlib.contextmanager
def full_disk(num_bytes: int = 1000) -> Iterator[None]:
    """Let no file of this process grow past `num_bytes` while the body runs. A write may end in the middle, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
