"""Training rows of the paper's conditional control methods (arXiv 2501.19393, table 3): plain rows -> rows with labels.

In: training rows, and the tokenizer of the model that will be trained on them. Out: each row once per method, with the label of its trace;
a file with all other rows, each with the reason. The methods:

- budget_forcing: the row as it is.
- token_conditional: the tokens between the delimiters of thinking, as decoding counts them, rounded up to a power of two.
- step_conditional: the parts of the trace between blank lines, rounded up to a power of two.

The text of a row does not change: training writes the prompt and the steps (`s1jax/data/chat.py`).
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from s1jax.checkpoint.source import load_tokenizer, resolve_source
from s1jax.data.chat import ChatFormat
from s1jax.data.control_methods import TrainedMethod, label_of, split_steps
from s1jax.data.rows import TrainingRow, describe_rejects, read_rows
from s1jax.data.thinking_format import AUTO
from s1jax.runtime import jsonl
from s1jax.runtime.command import counted, run_command
from s1jax.runtime.config import parse_arguments
from s1jax.runtime.errors import UserError
from s1jax.runtime.fields import InputPath, check_types
from s1jax.runtime.files import check_writable
from s1jax.runtime.lock import Lock

logger = logging.getLogger("data_tools.curation")


@dataclass(frozen=True)
class ControlDataConfig:
    """Label training rows with the amount of thinking that their questions ask for."""

    source: Annotated[tyro.conf.Positional[InputPath], tyro.conf.arg(metavar="TRAIN")]
    """Training rows without labels: a .jsonl or .parquet file, a directory of them, or a hub id."""
    output: Path
    """JSONL file for the labelled rows. The rejected rows go to NAME.rejects.jsonl beside it."""
    tokenizer: InputPath
    """The model that will be trained on the rows: a directory or a hub id. Its weights are not read."""
    methods: tuple[Literal["budget_forcing", TrainedMethod], ...] = (
        "budget_forcing",
        "token_conditional",
        "step_conditional",
    )
    """Each row is written once for each of these."""
    thinking_format: str = AUTO
    """The thinking format of the rows that are not step-conditional, as in training."""

    def __post_init__(self) -> None:
        check_types(self)
        if not self.methods or len(set(self.methods)) < len(self.methods):
            raise UserError(f"--methods {' '.join(self.methods)} must name each method once")
        source = Path(self.source).resolve()
        for path in (self.output.resolve(), self.rejects.resolve()):
            if source == path or (source.is_dir() and path.is_relative_to(source)):
                raise UserError(f"--output {self.output} would change {self.source}: write elsewhere")

    @property
    def rejects(self) -> Path:
        """The file for the rejected rows: NAME.rejects.jsonl beside the output."""
        return self.output.parent / f"{self.output.stem}.rejects.jsonl"


def label_rows(
    rows: Sequence[TrainingRow],
    methods: Sequence[Literal["budget_forcing", TrainedMethod]],
    num_tokens: Callable[[str], int],
) -> tuple[list[TrainingRow], list[dict[str, Any]]]:
    """Return each row once per method, with its label, and the rejected rows as {reason, ...the row's columns}.

    `num_tokens` counts the thinking tokens of a trace. A row that has a label already is rejected.
    """
    labelled: list[TrainingRow] = []
    rejects: list[dict[str, Any]] = []
    for row in rows:
        if "method" in row:
            rejects.append({**row, "reason": f"it has a label already: {row['method']} {row['requested']}"})
            continue
        for method in methods:
            if method == "budget_forcing":
                labelled.append(row)
                continue
            count = num_tokens(row["thinking"]) if method == "token_conditional" else len(split_steps(row["thinking"]))
            labelled.append({**row, "method": method, "requested": label_of(count)})
    return labelled, rejects


def write_mixture(config: ControlDataConfig) -> list[TrainingRow]:
    """Label the rows and write them, with the rejected ones beside them. Return the labelled rows.

    Raises UserError if no row is left, or if files of other rows are in the way.
    """
    for path in (config.output, config.rejects):
        check_writable(path)
    with Lock(config.output), Lock(config.rejects):
        chat = ChatFormat.of(load_tokenizer(resolve_source(config.tokenizer, weights=False)), config.thinking_format)
        rows, rejects = read_rows(config.source)
        labelled, more_rejects = label_rows(rows, config.methods, lambda thinking: len(chat.encode_trace(thinking)))
        rejects += more_rejects
        if not labelled:
            raise UserError(f"no row of {config.source} can be labelled: {rejects[0]['reason']}")
        is_again = config.output.exists() and [row for _, row in jsonl.read(config.output)] == labelled
        for path in (config.output, config.rejects):
            if path.exists() and not is_again:
                raise UserError(f"{path} holds other rows: remove it, or give another --output")
        jsonl.write(config.rejects, rejects)
        jsonl.write(config.output, labelled)
    for method in config.methods:
        labels = Counter(row["requested"] for row in labelled if row.get("method") == method)
        each = ", ".join(f"{label} ({labels[label]} x)" for label in sorted(labels, key=int))
        logger.info("%s: %s%s", method, counted(len(rows) - len(more_rejects), "row"), each and f"; labels: {each}")
    logger.info("%s: %s, %s", config.output, counted(len(labelled), "row"), describe_rejects(rejects, config.rejects))
    return labelled


def main() -> None:
    """Run the command line."""
    write_mixture(parse_arguments(__doc__ or "", ControlDataConfig))


if __name__ == "__main__":
    run_command(main)
