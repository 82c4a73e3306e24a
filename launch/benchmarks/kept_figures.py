"""The file of `bench.py compare --out=FILE`: every measurement at once, and where to go on.

It is written anew after each measurement and appears under its name only when it is complete, so an
interrupted command loses one measurement at most. Measurements of another model, of other sizes, of
another machine or of other code are not mixed: such a file is refused, and stays as it is.
"""

import hashlib
import importlib.metadata
import json
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

PACKAGES = ("jax", "jaxlib", "torch", "transformers", "peft", "numpy", "safetensors")
LABELS = ("round", "part", "mode", "side")

Found = Mapping[str, Any]


def configuration(model: str, sizes: Mapping[str, int]) -> dict[str, Any]:
    """What must be the same for measurements to stand in one file."""
    made = {
        "model": model,
        "weights": [
            [file.name, file.stat().st_size, file.stat().st_mtime_ns]
            for file in sorted(Path(model).glob("*.safetensors"))
        ],
        "sizes": dict(sizes),
        "machine": machine(),
        "code": _code(),
    }
    return json.loads(json.dumps(made))


def machine() -> dict[str, Any]:
    """The CPU and its flags, threads, and versions of packages."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    facts = dict(
        (part.strip() for part in line.split(":", 1)) for line in text.splitlines() if ":" in line
    )
    return {
        "cpu": facts.get("model name", platform.processor() or platform.machine()),
        "flags": facts.get("flags", facts.get("Features", "")).split(),
        "threads": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def _code() -> str:
    """A digest of what is measured: medians of two states of subjax would be of neither."""
    import subjax

    digest = hashlib.sha256()
    package = Path(subjax.__file__).parent
    for file in [*sorted(package.rglob("*.py")), *sorted(Path(__file__).parent.glob("*.py"))]:
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


def key(found: Found) -> tuple[Any, ...]:
    """Which measurement it is."""
    return tuple(found[name] for name in LABELS)


def read(path: Path, same: Mapping[str, Any]) -> dict[str, Any]:
    """What the file holds; {} where there is none.

    Ends the program with one line if it is damaged or of another configuration.
    """
    if not path.exists():
        return {}
    advice = "name another file as --out; this one stays as it is"
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        for one in kept["measurements"]:
            key(one)
        float(kept["load_before"])
        there = {name: kept.get(name) for name in same}
    except OSError as error:
        raise SystemExit(f"--out={path} cannot be read ({error.strerror}): {advice}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise SystemExit(f"--out={path} is no complete file of compare: {advice}") from None
    if differences := list(_differences("", there, same)):
        told = "; ".join(differences[:3]) + ("; …" if len(differences) > 3 else "")
        raise SystemExit(f"--out={path} is of another configuration ({told}): {advice}")
    return kept


def _differences(name: str, there: Any, here: Any) -> Iterator[str]:
    """What differs, with both values where they are short."""
    if there == here:
        return
    if isinstance(there, dict) and isinstance(here, dict):
        for part in sorted({*there, *here}):
            inner = f"{name}.{part}" if name else part
            yield from _differences(inner, there.get(part), here.get(part))
    elif max(len(str(there)), len(str(here))) <= 80:
        yield f"{name} is {there} there and {here} here"
    else:
        yield f"{name} is another"


def write(path: Path, kept: Mapping[str, Any], measurements: Sequence[Found]) -> None:
    """Replaces the file."""
    from subjax.runtime import artifacts

    with artifacts.atomic_write(path) as file:
        file.write(json.dumps({**kept, "measurements": list(measurements)}, indent=1) + "\n")
