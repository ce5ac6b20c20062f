"""The files of a source of training rows or problems, and their rows as they are.

In: a file, a directory (of training rows) or a hub id. Out: each row with its file and its number.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from s1jax.runtime import jsonl
from s1jax.runtime.errors import UserError, reason_of

logger = logging.getLogger(__name__)

_SUFFIXES = (".jsonl", ".parquet")
FILE_SUFFIXES = (*_SUFFIXES, ".json")
"""What the name of a file of rows ends in; any other name may be that of a hub dataset."""
# Words in the path of a file: those that the `datasets` library knows, and those of this project's own files.
_TRAIN = {"train", "training"}
_NOT_TRAIN = {
    "validation", "valid", "val", "dev", "test", "testing", "eval", "evaluation", "heldout", "holdout"
}  # fmt: skip
# The last part of the names of this project's own files, such as `train.rejects.jsonl`.
_OURS = ("rejects", "problems", "heldout")


def raw_rows(source: str) -> Iterator[tuple[str, int, dict[str, Any] | UserError, str]]:
    """Yield, for every row, its file or hub id, its number from 1, its columns (or why it has none), and the text of its line, if any.

    Raises FileNotFoundError if there is no such source, and UserError if a file cannot be read as what its name says.
    """
    path = Path(source)
    if not source:
        raise UserError("source is empty: give a .jsonl or .parquet file, a directory of them, or a hub id")
    if path.is_dir():
        files = training_files(path)
    elif path.exists() or path.is_absolute() or path.suffix in FILE_SUFFIXES:
        files = [path]
    else:
        yield from hub_rows(source, "train")
        return
    for file in files:
        if not file.exists():
            raise FileNotFoundError(f"there is no file {file}")
        if file.suffix in (".jsonl", ".json"):
            for number, line, value in jsonl.parse(file):
                if not isinstance(value, dict | UserError):
                    value = UserError("not a JSON object")
                yield str(file), number, value, line.decode(errors="replace")
        elif file.suffix == ".parquet":
            yield from _parquet_rows(file)
        else:
            raise UserError(f"{file} is neither .jsonl nor .parquet: convert it to one of them")


def training_files(directory: Path) -> list[Path]:
    """Return the files of a directory that are for training, in the order of their names, and log which are read and which are not.

    The rule is that of the `datasets` library. A word in a name, such as `test`, says of which split a file is. If there is a train split
    (`train.jsonl`, `data/train-00000-of-00002.parquet`, `train/a.jsonl`), only its files are read. Otherwise all files are read that are
    of no other split. Hidden files, rejected rows, problems and subfolders are never read, except the subfolders `data` and `train`.
    """
    names = [
        str(file.relative_to(directory)) for pattern in ("*", "*/*") for file in directory.glob(pattern)
        if file.suffix in _SUFFIXES and file.is_file()
    ]  # fmt: skip
    left_out = {name: reason for name in names if (reason := _no_training_file(name))}
    read = sorted(name for name in names if name not in left_out)
    if train := [name for name in read if _words(name) & _TRAIN]:
        left_out |= {name: "not the train split" for name in read if name not in train}
        read = train
    others = ", ".join(f"{name} ({left_out[name]})" for name in sorted(left_out)[:20]) or "none"
    if not read:
        raise FileNotFoundError(
            f"directory {directory} holds no .jsonl or .parquet file for training; left out: {others}"
        )
    for first, second in pairwise(read):
        if Path(first).with_suffix("") == Path(second).with_suffix(""):
            raise UserError(f"directory {directory} holds both {first} and {second}: give one of them as the source")
    more = f" and {len(read) - 20} more" if len(read) > 20 else ""
    logger.info("%s: reading %s%s; left out: %s", directory, ", ".join(read[:20]), more, others)
    return [directory / name for name in read]


def _no_training_file(name: str) -> str | None:
    """Return why a file, named within its directory, is not for training; None if it may be."""
    *folders, _ = parts = Path(name).parts
    if any(part.startswith((".", "_")) for part in parts):
        return "hidden"
    if (last := Path(name).stem.rpartition(".")[2]) in _OURS:
        return last
    if (others := _words(name) & _NOT_TRAIN) and not _words(name) & _TRAIN:
        return min(others)
    return "in a subfolder" if any(folder != "data" and not _words(folder) & _TRAIN for folder in folders) else None


def _words(name: str) -> set[str]:
    return set(re.split("[^a-z]+", re.sub("(held|hold)[^a-z]out", "heldout", name.lower())))


def _parquet_rows(file: Path) -> Iterator[tuple[str, int, dict[str, Any], str]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file) as parquet:
            names = parquet.schema_arrow.names
            if len(set(names)) < len(names):
                raise UserError(f"it has two columns named {Counter(names).most_common(1)[0][0][:80]}")
            # 0.1 of 32 bits is 0.1, not 0.10000000149011612.
            short = [
                field.name for field in parquet.schema_arrow if field.type in (pyarrow.float16(), pyarrow.float32())
            ]
            rows = (row for batch in parquet.iter_batches(256) for row in batch.to_pylist())
            for number, row in enumerate(rows, 1):
                row |= {name: float(str(np.float32(row[name]))) for name in short if row[name] is not None}
                yield str(file), number, row, ""
    except (pyarrow.ArrowException, OSError, ValueError, ArithmeticError) as error:
        raise UserError(f"{file} cannot be read as Parquet ({reason_of(error)})") from error


def hub_rows(
    name: str, split: str, subset: str | None = None, *, files: Sequence[str] = (), revision: str | None = None
) -> Iterator[tuple[str, int, dict[str, Any], str]]:
    """Yield the rows of a split of a hub dataset, or of a subset (a configuration) of it, as `raw_rows` does.

    With `files`, these JSON files of the dataset are read as its split. `revision` is a commit, branch or tag. A dataset with a script of
    its own, which the library no longer runs, is read from the Parquet files that the hub made of it.
    Raises FileNotFoundError if the hub does not give them.
    """
    import datasets

    options = {"revision": revision} if revision else {}
    try:
        if files:
            at = f"@{revision}" if revision else ""
            paths = {split: [f"hf://datasets/{name}{at}/{file}" for file in files]}
            dataset = datasets.load_dataset("json", None, split=split, data_files=paths)
        else:
            try:
                dataset = datasets.load_dataset(name, subset, split=split, **options)
            except RuntimeError as error:
                if "scripts are no longer supported" not in str(error):
                    raise
                logger.info("%s has a script: its Parquet files are read instead", name)
                dataset = datasets.load_dataset(name, subset, split=split, revision="refs/convert/parquet")
    except (OSError, ValueError, RuntimeError) as error:  # such as no such dataset, no connection, or no such split
        raise FileNotFoundError(
            f"no file or directory {name}, and the hub does not give its {split} split ({reason_of(error)})"
        ) from error
    yield from ((name, number, row, "") for number, row in enumerate(dataset, 1))


def hub_revision(name: str) -> str | None:
    """Return the commit of a hub dataset; None if the hub does not tell it, so that the rows can only come from the local cache."""
    from huggingface_hub import HfApi

    try:
        return HfApi().dataset_info(name, timeout=20).sha
    except Exception as error:  # the errors of the hub and of its HTTP library have no common base class
        logger.warning("the hub does not tell the revision of %s (%s)", name, reason_of(error))
        return None
