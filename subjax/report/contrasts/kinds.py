"""The table of kinds of contrast: nothing else compares or names one."""

from collections.abc import Mapping

from ml_collections import ConfigDict

from subjax.report.contrasts.bases import OfBases
from subjax.report.contrasts.difference import Contrast
from subjax.report.contrasts.traits import OfTraits

KINDS: Mapping[str, type[Contrast]] = {
    "difference": Contrast,
    "bases": OfBases,
    "traits": OfTraits,
}


def of_config(config: ConfigDict) -> list[Contrast]:
    """The rows of `contrasts`."""
    # Scores of earlier releases do not say the kind.
    kinds = {name: row.get("kind", "difference") for name, row in config.contrasts.items()}
    return [KINDS[kind].of_row(config, name) for name, kind in kinds.items()]
