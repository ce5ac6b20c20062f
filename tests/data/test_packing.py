"""The order of the examples, the rows that hold them, and the batches of the steps."""

import dataclasses
import itertools
import math

import jax
import numpy as np
import pytest

from s1jax.data import packing
from s1jax.data.examples import DataConfig
from s1jax.data.packing import Packer, bucket_lengths, num_steps, pack, pack_step, step_examples
from tests.support.training import make_examples


def order(num_examples, config) -> list[list[int]]:
    return [indices.tolist() for indices in step_examples(num_examples, config)]


# Order


def test_run_of_the_paper_is_315_steps():
    config = DataConfig("s1K")
    assert num_steps(1000, config) == len(step_examples(1000, config)) == 315


@pytest.mark.parametrize(("num_examples", "batch_size"), [(10, 4), (8, 4), (3, 5), (1, 1)])
def test_every_epoch_covers_every_example_once_in_a_new_order(num_examples, batch_size):
    config = DataConfig("rows", batch_size=batch_size, num_epochs=6)
    batches = order(num_examples, config)
    assert len(batches) == num_steps(num_examples, config)
    per_epoch = len(batches) // 6
    epochs = [[i for batch in batches[e * per_epoch : (e + 1) * per_epoch] for i in batch] for e in range(6)]
    assert all(sorted(epoch) == list(range(num_examples)) for epoch in epochs)
    if num_examples > 5:
        assert len({tuple(epoch) for epoch in epochs}) == 6


def test_neighbouring_seeds_share_no_epoch():
    epochs = [
        tuple(epoch)
        for seed in (42, 43, 44)
        for epoch in order(20, DataConfig("rows", batch_size=20, num_epochs=4, seed=seed))
    ]
    assert len(set(epochs)) == 12


def test_batch_is_a_pure_function_of_seed_and_step():
    examples = make_examples([3, 9, 5, 7, 6, 4, 8])
    config = DataConfig("rows", batch_size=3, num_epochs=4, pad_multiple=1)
    steps = [Packer(examples, config)[step] for step in range(12)]
    for step in (11, 0, 5, 2):
        jax.tree.map(np.testing.assert_array_equal, Packer(examples, config)[step], steps[step])
    # Pinned: a run must go on in the same order in another process, on another machine, under another Grain.
    assert order(7, config)[:6] == [[5, 1, 2], [4, 3, 0], [6], [4, 3, 1], [6, 5, 0], [2]]


# Packing


def fewest_positions(lengths, row_lengths, rows_per_micro_batch):
    """Brute force over all assignments to any number of micro-batches of the first length and at most one of each other length."""
    best = math.inf
    for numbers in itertools.product(range(len(lengths) + 1), *[(0, 1)] * (len(row_lengths) - 1)):
        rooms = [x for x, n in zip(row_lengths, numbers, strict=True) for _ in range(n * rows_per_micro_batch)]
        if sum(rooms) < best and any(
            (np.bincount(rows, weights=lengths, minlength=len(rooms)) <= rooms).all()
            for rows in itertools.product(range(len(rooms)), repeat=len(lengths))
        ):
            best = sum(rooms)
    return best


@pytest.mark.parametrize("rows_per_micro_batch", [1, 2])
@pytest.mark.parametrize("row_lengths", [[12], [12, 6], [12, 6, 3]])
@pytest.mark.parametrize("seed", range(6))
def test_packing_puts_every_item_into_one_row_that_holds_it_and_takes_the_fewest_positions_of_a_few_items(
    seed, row_lengths, rows_per_micro_batch
):
    lengths = np.random.default_rng(seed).integers(1, 12, 5)
    rows = pack_step(lengths, row_lengths, rows_per_micro_batch)
    assert sorted(i for of_length in rows for row in of_length for i in row) == list(range(5))
    for length, of_length in zip(row_lengths, rows, strict=True):
        assert (
            all(sum(lengths[i] for i in row) <= length for row in of_length)
            and len(of_length) % rows_per_micro_batch == 0
        )
    assert all(len(of_length) <= rows_per_micro_batch for of_length in rows[1:])
    positions = sum(length * len(of_length) for length, of_length in zip(row_lengths, rows, strict=True))
    assert positions == fewest_positions(lengths, row_lengths, rows_per_micro_batch), (
        "best fit finds the optimum for a few items; for more it may not"
    )


def test_packing_takes_the_fullest_row_that_has_room():
    assert pack([6, 7, 3, 4, 8], [10, 10, 10]) == [[4], [1, 2], [0, 3]]
    assert pack([6, 7, 3, 4, 8], [10, 10, 7]) is None
    assert pack_step([6, 7, 3, 4, 8], [10, 5], 1) == [[[4], [1, 2], [0, 3]], []]
    assert pack_step([6, 7, 5, 4, 8], [10, 5], 1) == [[[4], [1], [0, 3]], [[2]]]


def test_a_thousand_lengths_like_s1ks_leave_little_padding():
    rng = np.random.default_rng(0)
    lengths = np.clip(np.exp(rng.normal(6.6, 0.8, 1000)), 125, 5000).astype(int)
    packed, padded = (
        Packer(make_examples(lengths), DataConfig("rows", pad_multiple=1, num_epochs=1, pack=pack))
        for pack in (True, False)
    )
    assert packed.filling() > 0.93 and padded.filling() < 0.25
    assert packed.rows_per_micro_batch == 1 and [shape.max_micro_batches for shape in packed.shapes][1:] == [1, 1]
    assert [(shape.rows_per_micro_batch, shape.max_micro_batches) for shape in padded.shapes] == [(16, 1)]


# Batches


def test_a_row_holds_its_examples_one_after_another_with_next_tokens_and_padding():
    packer = Packer(make_examples([3, 5, 6]), DataConfig("rows", batch_size=3, row_length=10, rows_per_micro_batch=2))
    (batch,) = packer.make_batch(np.array([0, 1, 2]))
    assert {name: (array.shape, array.dtype.name) for name, array in batch.items()} == {
        "tokens": ((1, 2, 10), "int32"),
        "targets": ((1, 2, 10), "int32"),
        "positions": ((1, 2, 10), "int32"),
        "segment_ids": ((1, 2, 10), "int32"),
        "loss_weights": ((1, 2, 10), "float32"),
        "num_micro_batches": ((), "int32"),
    }
    row = {name: x[0, 0].tolist() for name, x in batch.items() if x.ndim}
    assert row["tokens"] == [2001, 2002, 2003, 2004, 2005, 2006, 1, 2, 3, 7]
    assert row["targets"] == [2002, 2003, 2004, 2005, 2006, 7, 2, 3, 7, 7]
    assert row["positions"] == [0, 1, 2, 3, 4, 5, 0, 1, 2, 0]
    assert row["segment_ids"] == [1] * 6 + [2] * 3 + [0]
    np.testing.assert_allclose(row["loss_weights"], np.array([0, 3, 3, 3, 3, 0, 0, 12, 0, 0]) / 36, rtol=1e-6)
    assert batch["segment_ids"][0, 1].tolist() == [1] * 5 + [0] * 5 and batch["num_micro_batches"] == 1


def test_a_step_takes_as_many_micro_batches_as_its_rows_need():
    config = DataConfig("rows", batch_size=4, num_epochs=1, row_length=10)
    packer = Packer(make_examples([9, 9, 9, 9, 4]), config)
    batches = [batch for (batch,) in packer]
    assert [shape.max_micro_batches for shape in packer.shapes] == [4]
    assert all(batch["tokens"].shape == (4, 1, 10) for batch in batches)
    taken = {
        len(indices): int(batch["num_micro_batches"]) for indices, batch in zip(packer.steps, batches, strict=True)
    }
    assert taken[1] == 1 and taken[4] in (3, 4)
    for batch in batches:
        assert (batch["segment_ids"].any(axis=(1, 2)) == (np.arange(4) < batch["num_micro_batches"])).all()
        assert (batch["tokens"][int(batch["num_micro_batches"]) :] == 7).all()


def test_the_last_micro_batch_of_a_step_has_half_the_length_if_that_holds_it():
    examples = make_examples([9, 9, 7, 3, 3])
    config = DataConfig("rows", batch_size=5, num_epochs=1, row_length=10, pad_multiple=1, num_row_lengths=2)
    packer = Packer(examples, config)
    full, half = packer[0]
    assert [x["tokens"].shape for x in (full, half)] == [(3, 1, 10), (1, 1, 5)]
    assert (full["num_micro_batches"], half["num_micro_batches"]) == (3, 1) and packer.filling() == 31 / 35
    assert sorted(np.count_nonzero(full["segment_ids"], axis=(1, 2))) == [9, 9, 10]
    assert half["segment_ids"].tolist() == [[[1, 1, 1, 0, 0]]]
    # There is none if the config asks for one length, if half is rounded up to the whole, or if no step needs it.
    for lengths, changes in (
        ([9, 9, 7, 3, 3], dict(num_row_lengths=1)),
        ([9, 9, 7, 3, 3], dict(pad_multiple=16)),
        ([9, 6], {}),
    ):
        packer = Packer(make_examples(lengths), dataclasses.replace(config, **changes))
        assert packer.row_lengths == [10] and packer[0][0]["num_micro_batches"] == (4 if len(lengths) == 5 else 2)


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("loss_average", ["sequence", "token"])
def test_loss_weights_of_every_batch_sum_to_one_however_it_is_packed(loss_average, pack):
    examples = make_examples([3, 9, 50, 7, 30])
    config = DataConfig("rows", batch_size=2, num_epochs=2, loss_average=loss_average, pack=pack, pad_multiple=1)
    packer = Packer(examples, config)
    assert len(packer.shapes) == (2 if pack else 1)
    for indices, batch in zip(packer.steps, packer, strict=True):
        tokens, weights = (np.concatenate([x[name].ravel() for x in batch]) for name in ("tokens", "loss_weights"))
        weights = weights.astype(np.float64)
        assert weights.sum() == pytest.approx(1, abs=1e-6)
        of_examples = [weights[tokens // 1000 == i].sum() for i in indices if i]
        shares = examples.lengths[indices] - 2 if loss_average == "token" else np.ones(len(indices))
        expected = [share / shares.sum() for i, share in zip(indices, shares, strict=True) if i]
        np.testing.assert_allclose(of_examples, expected, rtol=1e-6)
        assert (weights > 0).sum() == (examples.lengths[indices] - 2).sum()


@pytest.mark.parametrize(("num_shards", "pack", "rows"), [(1, True, 1), (4, True, 4), (1, False, 6), (4, False, 8)])
def test_a_micro_batch_has_as_few_rows_as_the_mesh_can_split_or_the_whole_batch_if_unpacked(num_shards, pack, rows):
    packer = Packer(make_examples([5] * 6), DataConfig("rows", batch_size=6, pack=pack), num_shards)
    assert [(shape.rows_per_micro_batch, shape.max_micro_batches) for shape in packer.shapes] == [(rows, 1)]


@pytest.mark.parametrize(("pad_multiple", "expected"), [(1, 9), (4, 12), (128, 128)])
def test_row_length_is_the_longest_example_rounded_up(pad_multiple, expected):
    packer = Packer(make_examples([3, 9]), DataConfig("rows", pad_multiple=pad_multiple, num_row_lengths=1))
    assert packer.row_lengths == [expected]


def test_shapes_that_fit_no_example_or_mesh_are_refused():
    examples = make_examples([3, 9])
    with pytest.raises(
        ValueError, match=r"row_length is 8, but example 1 has 9 tokens: raise it to 9, or set max_length"
    ):
        Packer(examples, DataConfig("rows", row_length=8))
    with pytest.raises(
        ValueError,
        match=r"rows_per_micro_batch is 6: it must be a multiple of 4, .* \(data x fsdp\)",
    ):
        Packer(examples, DataConfig("rows", rows_per_micro_batch=6), num_shards=4)


def test_filling_is_the_share_of_positions_that_hold_tokens():
    config = DataConfig("rows", batch_size=2, num_epochs=3, row_length=10, pad_multiple=1)
    packer = Packer(make_examples([9, 6, 3]), config)
    assert len(packer.shapes) > 1
    arrays = [x for batch in packer for x in batch]
    computed = sum(int(x["num_micro_batches"]) * math.prod(x["tokens"].shape[1:]) for x in arrays)
    held = sum(int(np.count_nonzero(x["segment_ids"])) for x in arrays)
    assert packer.filling() == held / computed and held == 3 * 18


def test_lengths_that_no_step_needs_are_not_in_the_program():
    config = DataConfig("rows", batch_size=2, num_epochs=1, row_length=100, pad_multiple=1)
    packer = Packer(make_examples([9, 9, 9, 9]), config)
    assert [(shape.row_length, shape.max_micro_batches) for shape in packer.shapes] == [(25, 1)]
    assert [np.count_nonzero(arrays["segment_ids"]) for (arrays,) in packer] == [18, 18]


@pytest.mark.parametrize(
    ("length_shards", "expected"), [(1, [404, 202, 101]), (4, [404, 204, 104]), (3, [405, 204, 102])]
)
def test_rows_are_split_over_all_of_a_mesh(length_shards, expected):
    config = DataConfig("rows", batch_size=2, num_epochs=1, pad_multiple=1)
    assert bucket_lengths(config, 404, length_shards) == expected
    packer = Packer(make_examples([404, 300, 90, 100]), config, length_shards=length_shards)
    assert set(packer.row_lengths) <= set(expected) and len(packer.row_lengths) > 1
    with pytest.raises(ValueError, match="row_length is 403: it must be a multiple of 2, the shards of a row"):
        bucket_lengths(dataclasses.replace(config, row_length=403), 404, 2)


def test_no_fewer_micro_batches_are_tried_than_the_large_examples_need(monkeypatch):
    """An example of more than half a row shares its row with no other such example."""
    tried = []
    monkeypatch.setattr(packing, "pack", lambda lengths, rooms: tried.append(len(rooms)) or pack(lengths, rooms))
    rows = pack_step(np.full(30, 501), [1000, 500], 1)
    assert len(rows[0]) == 30 and not rows[1] and tried == [30]


@pytest.mark.parametrize(("rows", "length"), [(500_000, 5000), (1, 50_000_000)])
def test_a_micro_batch_that_is_too_large_for_an_array_is_refused(rows, length):
    with pytest.raises(ValueError, match="too large a micro-batch for an array"):
        packing.rows_per_micro_batch(DataConfig("rows", rows_per_micro_batch=rows), length, 1)
    assert packing.rows_per_micro_batch(DataConfig("rows", rows_per_micro_batch=500), 32768, 1) == 500
