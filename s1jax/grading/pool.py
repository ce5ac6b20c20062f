"""Grading: a model's text and a gold answer -> the extracted answer and a verdict, from any thread and beside other work.

A `Grader` decides most pairs at once by rules of this package (`equivalence.py`). The others go to worker processes (`worker.py`), which
are started when the first pair needs one, in a thread of their own. No text is ever executed.
"""

from __future__ import annotations

import contextlib
import json
import queue
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal, NamedTuple

from s1jax.grading.equivalence import compare
from s1jax.grading.extract import extract_answer
from s1jax.grading.letters import choice_letter, extract_letter
from s1jax.runtime.errors import UserError
from s1jax.runtime.files import ROOT

Verdict = Literal["equal", "different", "no_answer", "timed_out"]
"""Whether the answer in a text equals the gold answer, is missing, or could not be compared within `worker.DEADLINE`."""


class Grade(NamedTuple):
    """What grading says about one text."""

    extracted: str | None
    """The answer in the text; of a multiple-choice problem its letter. None exactly if the verdict is `no_answer`."""
    verdict: Verdict


class Grader:
    """Context manager that grades. Its worker processes end with the context, and at the latest with this process."""

    def __init__(self, num_workers: int = 2):
        self._threads = ThreadPoolExecutor(num_workers, thread_name_prefix="grading")
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        self._workers = [_Worker() for _ in range(num_workers)]
        for worker in self._workers:
            self._idle.put(worker)

    def __enter__(self) -> Grader:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(cancel_futures=True)
        for worker in self._workers:
            worker.stop()

    def grade(self, text: str, gold: str) -> Grade:
        """Return the answer in a model's text, and its verdict. May wait for `worker.DEADLINE`, and for other comparisons."""
        return self.submit(text, gold).result()

    def submit(self, text: str, gold: str) -> Future[Grade]:
        """Return the future of `grade`, at once. It is done already if no worker process is needed."""
        is_choice = choice_letter(gold) is not None
        extracted = extract_letter(text) if is_choice else extract_answer(text)
        if extracted is None:
            return _done(Grade(None, "no_answer"))
        is_equal = compare(extracted, gold)
        if is_equal is not None:
            return _done(Grade(extracted, "equal" if is_equal else "different"))
        return self._threads.submit(lambda: Grade(extracted, self._ask_worker(extracted, gold)))

    def are_equal(self, answer: str, gold: str) -> bool:
        """Return whether an answer equals another. One that cannot be compared in time does not."""
        is_equal = compare(answer, gold)
        return (
            self._threads.submit(self._ask_worker, answer, gold).result() == "equal" if is_equal is None else is_equal
        )

    def _ask_worker(self, answer: str, gold: str) -> Verdict:
        worker = self._idle.get()
        try:
            return worker.compare(answer, gold)
        finally:
            self._idle.put(worker)


def _done(grade: Grade) -> Future[Grade]:
    future: Future[Grade] = Future()
    future.set_result(grade)
    return future


class _Worker:
    """One worker process. It is started for the first comparison."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def compare(self, answer: str, gold: str) -> Verdict:
        """Return `equal`, `different` or `timed_out`. Raises UserError if the process cannot work."""
        if self._process is None or self._process.poll() is not None:
            self.stop()
            command = [sys.executable, "-m", "s1jax.grading.worker"]
            # A group of its own, so that Ctrl-C in a terminal does not end it before this process.
            self._process = subprocess.Popen(command, stdin=-1, stdout=-1, text=True, cwd=ROOT, process_group=0)
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        verdict = ""
        with contextlib.suppress(BrokenPipeError):
            stdin.write(json.dumps([answer, gold]) + "\n")
            stdin.flush()
            verdict = stdout.readline().strip()
        if not verdict and (code := self._process.wait()) >= 0:
            raise UserError(f"the grading process ended with exit code {code}; the lines above say why")
        # Without a verdict it was killed from outside, for example for want of memory.
        return verdict or "timed_out"  # type: ignore[return-value]

    def stop(self) -> None:
        """End the process, and wait for its end."""
        if self._process is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.communicate()
