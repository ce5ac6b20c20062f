"""Curation from the pool to the training set: the stages of a config in their order, and what they have decided.

Stages that ask a model run in all processes of the run, as evaluation does. The first process alone does everything else. All processes
see the same folders.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path

from data_tools.curation import (
    collect,
    decontamination,
    difficulty,
    domains,
    duplicates,
    lengths,
    quality,
    selection,
    traces,
)
from data_tools.curation.config import CurationConfig, StageName
from data_tools.curation.decontamination import overlap_counts
from data_tools.curation.publish import OUTPUTS, check_publish, publish
from data_tools.curation.stage import Result, Rows, Stage, describe, find_result, write_result
from data_tools.curation.workers import Workers
from s1jax.runtime.errors import UserError
from s1jax.runtime.lock import Lock
from s1jax.runtime.preemption import Preemption
from s1jax.runtime.processes import everywhere, from_first_process

logger = logging.getLogger("data_tools.curation")

_ASKS_A_MODEL = ("traces", "difficulty", "domains")


def curate(config: CurationConfig) -> Path:
    """Run the stages that have no result yet, write the training set, and return the folder that holds it.

    A signal ends the process at once: finished stages and the answers of models are on disk.
    """
    output, work = Path(config.output), _work(config)
    others = _check_folders(output, work)
    from_first_process(lambda: check_publish(config.publish, output, others))
    with Preemption() as preemption, preemption.nothing_to_save("curating"), contextlib.ExitStack() as stack:
        preemption.saved = f"finished stages and the answers of models are in {work}"
        for folder in dict.fromkeys((output, work)):
            stack.enter_context(Lock(folder))
        workers = stack.enter_context(Workers(config.executor, config.num_processes))
        before = rows = Rows((), workers)
        contamination: Mapping[tuple[str, str], int] = {}
        stages = [(name, everywhere(make_stage)) for name, make_stage in _stages(config)]  # a bad setting ends it here
        for name, stage in stages:
            before, result = rows, _run(name, stage, rows, work)
            _check_enough(config, name, result)
            rows = Rows((*rows.results, result), workers)
            if name == "decontamination":
                contamination = from_first_process(partial(overlap_counts, before, result))
        settings = {name: asdict(getattr(config, name)) for name in (*config.stages, "publish")}
        from_first_process(
            lambda: publish(config.publish, rows, output, settings=settings, contamination=contamination, others=others)
        )
    return output


def find_results(config: CurationConfig) -> list[Result]:
    """Return the results of the stages up to the first that has not been run. Raises UserError if there is none."""
    work, key, results = _work(config), "", []
    for _, make_stage in _stages(config):
        result = find_result(make_stage(), key, work)
        if not result.is_there:
            break
        key = result.summary["key"]
        results.append(result)
    if not results:
        raise UserError("no stage has been run with these settings: run the command without --explain")
    return results


def _check_folders(output: Path, work: Path) -> list[str]:
    """Return the name in the output folder that belongs to `work`, if any. Raises UserError if `work` stands where the output will."""
    inside = Path(os.path.relpath(work.resolve(), output.resolve())).parts
    if not inside or inside[0] in OUTPUTS:
        raise UserError(f"--work {work} is in the way of the output: give {output / 'work'} or another folder")
    return [] if inside[0] == ".." else [inside[0]]


def _check_enough(config: CurationConfig, name: StageName, result: Result) -> None:
    """Raise UserError once a stage leaves fewer rows than the selection must choose, before later stages ask a model."""
    left, wanted = result.summary["num_kept"], config.selection.num
    chooses = "selection" in config.stages[config.stages.index(name) + 1 :] and config.selection.method != "full"
    if chooses and left < wanted:
        raise UserError(
            f"the stage {name} leaves {left:,} rows, and the selection must choose {wanted:,}: give a larger pool or a smaller "
            "--selection.num. --explain FILE:LINE tells why a row is gone"
        )


def _work(config: CurationConfig) -> Path:
    return Path(config.work or Path(config.output) / "work")


def _stages(config: CurationConfig) -> Iterator[tuple[StageName, Callable[[], Stage]]]:
    """Yield the name of each stage of a config, and a function that makes it. It may read files."""
    calls = _work(config) / "calls"
    make: dict[StageName, Callable[[], Stage]] = {
        "collect": lambda: collect.stage(config.collect),
        "duplicates": lambda: duplicates.stage(config.duplicates),
        "decontamination": lambda: decontamination.stage(config.decontamination),
        "traces": lambda: traces.stage(config.traces, calls),
        "quality": lambda: quality.stage(config.quality),
        "difficulty": lambda: difficulty.stage(config.difficulty, calls),
        "lengths": lambda: lengths.stage(config.lengths),
        "domains": lambda: domains.stage(config.domains, calls),
        "selection": lambda: selection.stage(config.selection),
    }
    for name in config.stages:
        yield name, make[name]


def _run(name: StageName, stage: Stage, rows: Rows, work: Path) -> Result:
    """Return the result of a stage, from disk if it is there. All processes call this."""
    key = rows.key if rows.results else ""
    result = find_result(stage, key, work)
    is_new = not from_first_process(lambda: result.is_there)
    if is_new and name in _ASKS_A_MODEL:
        parts = iter(stage.run(rows))
        first = next(parts)  # the models are asked before the first part comes out, by all processes together
        from_first_process(lambda: write_result(stage, itertools.chain([first], parts), key, work))
    elif is_new:
        from_first_process(lambda: write_result(stage, stage.run(rows), key, work))
    logger.info("%s%s", describe(result.summary), "" if is_new else " (done before)")
    return result
