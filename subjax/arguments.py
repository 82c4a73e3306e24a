"""The argument of a config file, behind the colon: `--config=configs/x.py:smoke`."""

from typing import Any

from ml_collections import ConfigDict


def parse(arg: str, **defaults: Any) -> ConfigDict:
    """Parses the text after the colon of `--config=file.py:text`.

    `smoke` sets a boolean, `students=3,lr=1e-4` sets values; a value takes its default's type.

    Raises:
      ValueError: an unknown name, or a value of another type.
    """
    parsed = ConfigDict(defaults)
    for part in filter(None, arg.split(",")):
        name, given, text = part.partition("=")
        if name not in defaults:
            raise ValueError(f"config argument {name!r} is unknown; known: {', '.join(defaults)}")
        kind = type(defaults[name])
        if kind is bool:
            if text not in ("", "True", "False"):
                raise ValueError(f"config argument {name}={text!r} must be True or False")
            parsed[name] = text != "False"
            continue
        if not given:
            raise ValueError(f"config argument {name} needs a value: {name}=…")
        try:
            parsed[name] = kind(text)
        except ValueError:
            raise ValueError(
                f"config argument {name}={text!r} is not of type {kind.__name__}"
            ) from None
    return parsed
