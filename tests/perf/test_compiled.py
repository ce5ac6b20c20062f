"""`compiled.py`: what a compiled program says about itself."""

import jax
import jax.numpy as jnp
import pytest

from s1jax.perf.compiled import REMATERIALISATION, captured_stderr, written_in_loops


@pytest.mark.parametrize("in_a_branch", [False, True])
def test_an_array_that_a_loop_writes_is_found(in_a_branch):
    def sort_all(x):
        return jax.lax.cond(x[0, 0] > 0, jnp.sort, lambda x: x, x) if in_a_branch else jnp.sort(x)

    def loop(x):
        return jax.lax.while_loop(lambda c: c[1] < 9, lambda c: (sort_all(c[0]), c[1] + 1), (x, 0))[0]

    compiled = jax.jit(loop).lower(jnp.ones((64, 64))).compile()
    assert "sort" in {kind for _, kind, size in written_in_loops(compiled) if size == 64 * 64 * 4}


FRAME = b"********************************\n"
ALARM = (
    b"E0000 00:00:17 slow_operation_alarm.cc:73] \n"
    + FRAME
    + b"[Compiling jit_step] Very slow compile? If ...\n"
    + FRAME
)


def test_a_warning_of_the_partitioner_is_captured_and_passed_on_but_no_alarm_about_time(capfd):
    import os

    with captured_stderr() as text:
        os.write(2, b"[SPMD] Involuntary full rematerialization. The compiler ...\n" + ALARM)
    assert text.getvalue().count(REMATERIALISATION) == 1
    assert capfd.readouterr().err == "[SPMD] Involuntary full rematerialization. The compiler ...\n"
