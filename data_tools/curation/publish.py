"""Publishing: the rows that every stage of curation kept -> a folder with the training set, all rejected rows, a report and a hub dataset.

The folder OUT holds

- train.jsonl, and validation.jsonl if wanted: training rows, as `s1jax.data.rows` reads them
- rejects.jsonl: every other row of the pool, with the stage that rejected it, the reason, and where it stands
- report.json and funnel.png: counts, token lengths, settings, and the sha256 of each other file
- hub/: the same rows as Parquet, with a dataset card

Invariants: the files are a function of the rows, the config and the versions that report.json names, byte for byte. A file is replaced only
if a curation wrote it and nobody changed it since. If a run is killed while it replaces files, report.json says so, and the next run
finishes the work.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import random
import re
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_tools.curation.funnel import funnel_figure
from data_tools.curation.report import WRITTEN_BY, card_of, report_of
from data_tools.curation.stage import Rows
from s1jax.data.rows import TrainingRow
from s1jax.runtime import jsonl
from s1jax.runtime.command import counted
from s1jax.runtime.errors import UserError, reason_of
from s1jax.runtime.fields import check_types
from s1jax.runtime.files import check_writable, write_file, writing

logger = logging.getLogger("data_tools.curation")

COLUMNS = tuple(name for name in TrainingRow.__annotations__ if name in TrainingRow.__required_keys__)
_SCHEMA = pa.schema([(name, pa.string()) for name in COLUMNS])
_BATCH, _SHARD = 1000, 20_000  # rows that are written together, and rows of a Parquet file
_PARTIAL = ".publish.partial"
OUTPUTS = ("train.jsonl", "validation.jsonl", "rejects.jsonl", "report.json", "funnel.png", "hub")
"""Names in the output folder."""
_OURS = re.compile(
    r"(train|validation|rejects)\.jsonl|funnel\.png|hub/(README\.md|funnel\.png|data/(train|validation)-\d+-of-\d+\.parquet)"
)


@dataclass(frozen=True)
class PublishConfig:
    """What is written about the chosen rows."""

    validation: int = 0
    """Number of the chosen rows that become validation rows. No question is in both sets."""
    seed: int = 0
    """Seed of the draw of the validation rows."""
    title: str = "Curated reasoning traces"
    """Title of the dataset card."""
    license: str = ""
    """License of the dataset, as the hub names it, for example apache-2.0. Without it the card names none."""
    push_to_hub: str = ""
    """Dataset on the Hugging Face hub, ORG/NAME, that receives the folder hub. The token is HF_TOKEN, or that of `hf auth login`."""
    private: bool = True
    """A dataset that the push makes is private. One that exists stays as it is."""

    def __post_init__(self) -> None:
        check_types(self)
        if self.validation < 0:
            raise UserError(f"validation is {self.validation}: it must be 0 or more")
        if self.push_to_hub and not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", self.push_to_hub, re.ASCII):
            raise UserError(f"push_to_hub is {self.push_to_hub!r}: it must be ORG/NAME, a dataset on the hub")
        if not re.fullmatch(r"[a-z0-9.-]*", self.license):
            raise UserError(
                f"license is {self.license!r}: it must be an identifier of the hub, such as apache-2.0 or mit"
            )


def check_publish(config: PublishConfig, output: Path, others: Collection[str] = ()) -> None:
    """Raise UserError if `publish` would fail for a reason that is known before any stage runs.

    `others` are names in `output` that the caller itself writes, such as the folder of the stages' results.
    """
    check_output(output, others)
    if config.push_to_hub and huggingface_hub.get_token() is None:
        raise UserError(f"push_to_hub {config.push_to_hub} needs a token: set HF_TOKEN, or log in with: hf auth login")


def check_output(output: Path, others: Collection[str] = ()) -> None:
    """Raise UserError if the folder cannot be written, or holds a file that no curation wrote or that was changed since.

    Hidden files are left alone.
    """
    check_writable(output / "report.json")
    if not output.is_dir():
        return
    report = _read_report(output)
    outputs = report.get("outputs")  # missing in the report of a run that was killed while it replaced the files
    for name in _files_in(output, others):
        path = output / name
        if name == "report.json" and report:
            continue
        if (
            not _OURS.fullmatch(name)
            or not path.is_file()
            or not report
            or (outputs is not None and name not in outputs)
        ):
            raise UserError(f"{output} holds {path}, which no curation wrote: give another folder")
        if outputs is not None and _sha256(path) != outputs[name]["sha256"]:
            raise UserError(f"{path} was changed since a curation wrote it: move it away, or give another folder")


def _read_report(output: Path) -> dict[str, Any]:
    """Return the report of the curation that wrote this folder; {} if there is none."""
    try:
        report = json.loads((output / "report.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return report if isinstance(report, dict) and report.get("written_by") == WRITTEN_BY else {}


def _files_in(output: Path, others: Collection[str]) -> Iterator[str]:
    """Yield the relative path of each file that is not hidden, also of a folder that is not ours, without what is in `others`."""
    for path in sorted(output.iterdir()):
        if path.name.startswith(".") or path.name in others:
            continue
        if path.name != "hub" or not path.is_dir() or path.is_symlink():
            yield path.name
            continue
        for file in sorted(path.rglob("*")):
            name = file.relative_to(output).as_posix()
            if "/." not in name and (file.is_symlink() or not file.is_dir()):
                yield name


def publish(
    config: PublishConfig,
    rows: Rows,
    output: Path,
    *,
    settings: Mapping[str, Any] | None = None,
    contamination: Mapping[tuple[str, str], int] | None = None,
    others: Collection[str] = (),
) -> dict[str, Any]:
    """Write the folder and return the report, which `settings` (the config of the run) and `contamination` become part of.

    Raises UserError if no row is left, or if the folder holds foreign files. A warning counts rows that training would reject.
    """
    check_publish(config, output, others)
    splits = _split(config, rows)
    partial = output / _PARTIAL
    with writing(output):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    try:
        num_rows: dict[str, int] = {}
        for name, numbers in splits.items():
            num_rows |= _write_split(rows, name, numbers, partial)
        num_rows["rejects.jsonl"] = _write_rejects(rows, partial / "rejects.jsonl")
        report = report_of(rows.results, splits, settings or {}, contamination or {})
        figure = funnel_figure(report["funnel"])
        for name in ("funnel.png", "hub/funnel.png"):
            write_file(partial / name, figure)
        data = sorted(partial.glob("hub/data/*"))
        hashes = {f"data/{file.name}": _sha256(file) for file in data}
        write_file(partial / "hub/README.md", card_of(report, config.title, config.license, hashes))
        report["outputs"] = {
            name: {"sha256": _sha256(partial / name)} | ({"num_rows": num_rows[name]} if name in num_rows else {})
            for name in sorted(file.relative_to(partial).as_posix() for file in partial.rglob("*") if file.is_file())
        }
        with writing(output):
            _replace(output, partial, report)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    logger.info("%s: %s", output, ", ".join(f"{len(numbers):,} rows for {name}" for name, numbers in splits.items()))
    if config.push_to_hub:
        push(config, output / "hub")
    return report


def _split(config: PublishConfig, rows: Rows) -> dict[str, np.ndarray]:
    """Return the row numbers of each split, ascending. The draw does not depend on the order of the pool."""
    table = rows.table("question")
    if not len(table):
        raise UserError("no row is left to publish: the funnel shows which stage rejected the last ones")
    numbers = table["row"].to_numpy()
    if not config.validation:
        return {"train": numbers}
    if config.validation >= len(numbers):
        raise UserError(
            f"validation {config.validation:,} leaves no row to train on: {counted(len(numbers), 'row')} were chosen; lower it,"
            " or choose more rows"
        )
    of_question: dict[str, list[int]] = {}
    for place, question in enumerate(table["question"].to_pylist()):
        of_question.setdefault(question, []).append(place)
    questions = sorted(of_question)
    random.Random(f"validation {config.seed}").shuffle(questions)
    is_validation = np.zeros(len(numbers), bool)
    missing = config.validation
    for question in questions:  # all rows of a question go to one set
        if len(of_question[question]) <= missing:
            is_validation[of_question[question]] = True
            missing -= len(of_question[question])
    if missing:
        raise UserError(
            f"validation {config.validation:,}: no whole questions have so many rows together, since some have several: add the stage"
            " duplicates, or change --publish.validation"
        )
    return {"train": numbers[~is_validation], "validation": numbers[is_validation]}


def _write_split(rows: Rows, split: str, numbers: np.ndarray, folder: Path) -> dict[str, int]:
    """Write the rows of a split as JSON lines and as Parquet. Return the number of rows of each file."""
    num_shards, num_bare = math.ceil(len(numbers) / _SHARD), 0
    files = {f"{split}.jsonl": len(numbers)}
    writer: pq.ParquetWriter | None = None
    (folder / "hub/data").mkdir(parents=True, exist_ok=True)
    with jsonl.Appender(folder / f"{split}.jsonl") as appender:
        for index, batch in enumerate(_batches(_parts(rows, numbers))):
            lines = batch.to_pylist()
            num_bare += sum(map(_is_bare, lines))
            appender.append(lines)
            begin = index * _BATCH
            if begin % _SHARD == 0:
                if writer is not None:
                    writer.close()
                name = f"hub/data/{split}-{begin // _SHARD:05d}-of-{num_shards:05d}.parquet"
                files[name] = min(_SHARD, len(numbers) - begin)
                writer = pq.ParquetWriter(folder / name, _SCHEMA, compression="zstd")
            assert writer is not None
            writer.write_table(batch)
    if writer is not None:
        writer.close()
    if num_bare:
        logger.warning(
            "%s.jsonl: %s no trace or no answer, so training would reject them. The stage traces writes traces, and the rule "
            "missing of the stage quality rejects such rows", split, counted(num_bare, "row") + (" has" if num_bare == 1 else " have"),
        )  # fmt: skip
    return files


def _parts(rows: Rows, numbers: np.ndarray) -> Iterator[pa.Table]:
    """Yield the training rows with these numbers, part by part."""
    for index in range(rows.num_parts):
        is_wanted = np.isin(rows.part(index, ())["row"].to_numpy(), numbers)
        if is_wanted.any():  # texts are read only where they are needed
            yield rows.part(index, COLUMNS).filter(pa.array(is_wanted)).drop_columns("row").cast(_SCHEMA)


def _batches(parts: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Yield the rows of the parts in tables of `_BATCH` rows; the last one may have fewer."""
    waiting = _SCHEMA.empty_table()
    for part in parts:
        waiting = pa.concat_tables([waiting, part])
        while len(waiting) >= _BATCH:
            yield waiting.slice(0, _BATCH).combine_chunks()
            waiting = waiting.slice(_BATCH)
    if len(waiting):
        yield waiting.combine_chunks()


def _is_bare(row: dict[str, Any]) -> bool:
    """Return whether a row lacks a text that training needs."""
    return not all(row[name].strip() for name in ("question", "thinking", "answer"))


def _write_rejects(rows: Rows, path: Path) -> int:
    """Write a line for each row of the pool that a stage rejected, in the order of the pool. Return their number."""
    write_file(path, "")
    columns = [name for name in ("id", "source", "file", "line", "raw") if name in rows.results[0].columns]
    num_rejects = 0
    with jsonl.Appender(path) as appender:
        for index in range(rows.num_parts):
            fates: dict[int, tuple[str, str, str | None]] = {}
            for result in rows.results:
                verdicts = pq.read_table(result.part(index), columns=["row", "reason", "detail"]).to_pylist()
                fates |= {
                    v["row"]: (result.name, v["reason"], v["detail"]) for v in verdicts if v["reason"] is not None
                }
            table = pq.read_table(rows.results[0].part(index), columns=["row", *columns])
            rejects = []
            for row in table.filter(pa.array(np.isin(table["row"].to_numpy(), [*fates]))).to_pylist():
                raw = row.pop("raw", None)
                stage, reason, detail = fates[row["row"]]
                row |= {"stage": stage, "reason": reason, "detail": detail}
                rejects.append(row if raw is None else row | {"raw": raw})
            appender.append(rejects)
            num_rejects += len(rejects)
    return num_rejects


def _replace(output: Path, partial: Path, report: Mapping[str, Any]) -> None:
    """Move the new files into the folder, and remove old ones that have no successor.

    Meanwhile report.json names no outputs, so that the next run knows all files of our names as ours.
    """
    write_file(output / "report.json", _json({"written_by": WRITTEN_BY, "unfinished": True}))
    for name in report["outputs"]:
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(partial / name, output / name)
    for name in _files_in(output, ()):
        if _OURS.fullmatch(name) and name not in report["outputs"]:
            (output / name).unlink()
    write_file(output / "report.json", _json(report))


def push(config: PublishConfig, folder: Path) -> None:
    """Upload the folder to the hub. Parquet files that it no longer has are removed there. Raises UserError if the hub refuses."""
    name = config.push_to_hub
    try:
        # The attributes are looked up at each call, so that a test can replace them.
        huggingface_hub.create_repo(name, repo_type="dataset", private=config.private, exist_ok=True)
        huggingface_hub.upload_folder(
            repo_id=name,
            repo_type="dataset",
            folder_path=folder,
            commit_message="Upload a curated dataset",
            delete_patterns=["data/*.parquet"],
        )
    # The hub's errors have no common base class, and those of its HTTP package vary with its version.
    except Exception as error:
        raise UserError(
            f"{folder} is written, but the hub does not take it as {name} ({reason_of(error)}). Run the same command again, or upload it"
            f" with: hf upload {name} {folder} --repo-type dataset"
        ) from error
    logger.info("pushed %s to https://huggingface.co/datasets/%s", folder, name)


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False, default=str) + "\n"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
