"""Decode and grade a grid of budgets, ignored stops, control methods and samples: CONFIG -> sample rows (JSONL)."""

from pathlib import Path

from s1jax.runtime.command import run_command


def main() -> None:
    """Parse the config and sweep. With --report, show all rows of the file."""
    from s1jax.evaluate.questions import find_questions
    from s1jax.evaluate.run import evaluate
    from s1jax.evaluate.sweep import SweepConfig, grid
    from s1jax.results.output import write_figures, write_report_file
    from s1jax.results.samples import read_samples
    from s1jax.runtime.config import parse_command
    from s1jax.runtime.processes import is_first_process

    config = parse_command(__doc__, SweepConfig)
    decoding = config.decoding
    evaluate(decoding, grid(config), config.num_samples)
    if config.report and is_first_process():
        path = Path(decoding.output)
        rows = read_samples(path)
        questions = find_questions(rows, [decoding.benchmark], decoding.columns, decoding.subset, decoding.split)
        for file in write_figures(rows, path, path.parent):
            print(file)
        write_report_file(rows, page := path.with_name("report.html"), path.name, questions)
        print(page)


if __name__ == "__main__":
    run_command(main)
