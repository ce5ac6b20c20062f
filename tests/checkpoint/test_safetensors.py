"""Blocks of safetensors files are read exactly, and corrupt files are refused."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from s1jax.checkpoint import safetensors
from tests.support.checkpoints import load, write_checkpoint


def test_a_block_is_read_by_reading_its_own_bytes(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    tensors = {"a": rng.normal(size=(6, 5, 4)), "b": rng.normal(size=(7, 9)), "c": rng.normal(size=11)}
    tensors["d"] = np.asarray(3.0)
    save_file(tensors, tmp_path / "x.safetensors")
    header = safetensors.read_header(tmp_path / "x.safetensors")
    num_read = 0
    read_exactly = safetensors.read_exactly

    def counting(file, buffer, offset):
        nonlocal num_read
        num_read += len(buffer)
        read_exactly(file, buffer, offset)

    monkeypatch.setattr(safetensors, "read_exactly", counting)
    for _ in range(200):
        name = rng.choice(list(tensors))
        block = tuple(tuple(sorted(int(x) for x in rng.integers(0, n + 1, 2))) for n in tensors[name].shape)
        num_read = 0
        data = safetensors.read_block(header[name], block)
        np.testing.assert_array_equal(data, tensors[name][tuple(slice(*b) for b in block)])
        assert num_read == data.nbytes
    reads = []
    monkeypatch.setattr(safetensors, "read_exactly", lambda file, buffer, offset: reads.append(len(buffer)))
    safetensors.read_block(header["a"], ((2, 4), (0, 5), (0, 4)))
    assert reads == [2 * 5 * 4 * 8]


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"", "header too small"),
        ((2**40).to_bytes(8, "little") + b"x" * 64, "header too large"),
        ((500).to_bytes(8, "little") + b"x" * 64, "invalid header length"),
        ((8).to_bytes(8, "little") + b"\xff\xfe{}abcd", "invalid UTF-8"),
        ((2).to_bytes(8, "little") + b"[]", "invalid JSON"),
        ('{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}', "invalid shape"),
        ('{"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}', "invalid value"),
        ('{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}', "invalid offset"),
        ('{"a":[1]}', "invalid type"),
        ('{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', "not fully covered"),
        (
            (54).to_bytes(8, "little") + b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}datajunk',
            "not fully covered",
        ),
    ],
)
def test_a_corrupt_file_is_named_with_its_fault(tmp_path, header, message):
    source = write_checkpoint(tmp_path / "in", {"a": np.zeros(1, np.float32)})
    data = header if isinstance(header, bytes) else len(header).to_bytes(8, "little") + header.encode()
    (source / "model.safetensors").write_bytes(data)
    with pytest.raises(ValueError, match=message) as caught:
        load(source)
    assert (
        f"{source / 'model.safetensors'} is truncated, has bytes behind its data, or is no safetensors file: "
        in str(caught.value)
    )
