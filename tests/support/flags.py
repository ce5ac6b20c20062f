"""The command-line options of a config class, found without tyro."""

import dataclasses
import typing

import tyro


def field_flags(config_type, prefix="--"):
    """The options of all fields, nested ones joined by a dot; positional fields have none, and a bool also has `--no-...`."""
    flags = []
    hints = typing.get_type_hints(config_type, include_extras=True)
    for field in dataclasses.fields(config_type):
        flag = prefix + field.name.replace("_", "-")
        hint = hints[field.name]
        if tyro.conf.Positional in getattr(hint, "__metadata__", ()):
            continue
        inner, *metadata = typing.get_args(hint) if hasattr(hint, "__metadata__") else (hint,)
        if dataclasses.is_dataclass(inner):
            is_flat = any(getattr(extra, "name", None) == "" for extra in metadata)
            flags += field_flags(inner, prefix if is_flat else flag + ".")
        else:
            flags.append(flag)
            if hint is bool:
                head, _, last = flag.rpartition(".")
                flags.append(f"{head}.no-{last}" if head else f"--no-{flag[2:]}")
    return flags
