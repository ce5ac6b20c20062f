"""Choose a small training set from a pool of questions: quality, difficulty, diversity (s1, arXiv 2501.19393, section 2).

The stages of CONFIG run in its order. Each prints how many rows it kept, and why it rejected the others. A stage whose rows and settings
are those of an earlier run is not run again, and no model is asked twice. Into the output folder go train.jsonl, which training reads,
validation.jsonl, rejects.jsonl with the fate of all other rows, report.json, funnel.png, and hub/, the dataset with its card.
"""

from __future__ import annotations

import sys

from s1jax.runtime.command import run_command


def main() -> None:
    """Parse the config and curate, or explain the fate of a row."""
    from data_tools.curation.config import CurationConfig
    from data_tools.curation.funnel import explain
    from data_tools.curation.pipeline import curate, find_results
    from s1jax.runtime.config import parse_command
    from s1jax.runtime.processes import is_first_process, start_processes
    from s1jax.runtime.terminal import for_stream

    config = parse_command(__doc__ or "", CurationConfig)
    if config.explain:
        print(for_stream(sys.stdout, explain(find_results(config), config.explain)))
        return
    start_processes()
    folder = curate(config)
    if is_first_process():
        print(for_stream(sys.stdout, str(folder / "train.jsonl")))


if __name__ == "__main__":
    run_command(main)
