"""`progress.py`: lines that say how far a command is."""

import re

from jax.monitoring import record_event_duration_secs

from s1jax.runtime.progress import progress


def test_progress_says_nothing_of_a_speed_before_anything_is_done(capsys):
    with progress(840, "decode", "row", initial=4) as bar:
        assert capsys.readouterr().err == "decode: 4 of 840\n"
        bar.update(836)
    assert re.fullmatch(r"decode: 840 of 840, +[\d,.e+]+row/s, 00:00 left\n", capsys.readouterr().err)


def test_compiling_is_announced_and_its_time_delays_no_estimate(capsys):
    trace, compilation = (f"/jax/core/compile/{event}_duration" for event in ("jaxpr_trace", "backend_compile"))
    with progress(96, "decode", "row", estimate_after=10) as bar:
        bar.start_t -= 110  # as if it had begun so many seconds ago
        record_event_duration_secs(trace, 0.001)  # a small program
        record_event_duration_secs(trace, 2.0)
        assert capsys.readouterr().err == "decode: 0 of 96\ndecode: 0 of 96, compiling\n"
        record_event_duration_secs(compilation, 100.0)
        bar.last_print_t -= 10
        bar.show_tokens(2000, longest=1500)
        assert re.fullmatch(r"decode: 0 of 96, (199|200) tokens/s, longest 1,500 tokens\n", capsys.readouterr().err)
        bar.last_print_t -= 10
        bar.update(3)
        assert re.fullmatch(r"decode: 3 of 96, (199|200) tokens/s, longest 1,500 tokens\n", capsys.readouterr().err)
        bar.last_print_t -= 10
        bar.update(45)
        assert re.fullmatch(
            r"decode: 48 of 96, (199|200) tokens/s, longest 1,500 tokens, 00:10 left\n", capsys.readouterr().err
        )
