"""lm-evaluation-harness with this project's model: lm-eval's own command line, to which the model type `s1jax` is added.

    python -m s1jax.evaluate.lm_eval --model s1jax --model_args model=DIR,max_thinking_tokens=256 --tasks gsm8k

`lm_eval_model.py` explains the model arguments. lm-eval finds model types only in its own package, so its command `lm_eval` does not know
this one.
"""

from importlib.util import find_spec

from s1jax.runtime.command import run_command
from s1jax.runtime.errors import UserError


def main() -> None:
    """Run lm-eval's command line on the arguments of this process. Raises UserError if lm-eval is not installed."""
    if find_spec("lm_eval") is None:
        raise UserError("lm-eval is not installed: pip install 's1jax[lm-eval]'")
    import lm_eval.__main__

    import s1jax.evaluate.lm_eval_model  # noqa: F401, which registers the model type

    lm_eval.__main__.cli_evaluate()


if __name__ == "__main__":
    run_command(main)
