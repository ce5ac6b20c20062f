"""Convert a checkpoint: from Hugging Face to pre-sharded Orbax, or from one of our own (pre-sharded, training run, step) to Hugging Face.

The form of SRC, a directory or a hub id, decides the direction. DST is made and must be empty if it exists. The weights keep every bit
unless --dtype asks for another dtype. Converting is never necessary: every command reads both forms directly.
"""

from s1jax.runtime.command import run_command


def main() -> None:
    """Load SRC, and write DST in the other form."""
    from s1jax.checkpoint.convert import ConvertConfig, convert
    from s1jax.runtime.config import parse_arguments

    convert(parse_arguments(__doc__, ConvertConfig))


if __name__ == "__main__":
    run_command(main)
