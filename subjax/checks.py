"""Checks for all kinds of configs; each raises a ValueError that names the field."""

from collections.abc import Collection, Mapping

from ml_collections import ConfigDict

from subjax import schema

Choices = Mapping[str, Collection[str]]  # field, or table.*.field for all rows -> allowed values


def choices(config: ConfigDict, table_of_choices: Choices) -> None:
    """Checks that fields have allowed values."""
    for pattern, allowed in table_of_choices.items():
        table, star, field = pattern.partition(".*.")
        if star:
            found = {f"{table}.{name}.{field}": row[field] for name, row in config[table].items()}
        else:
            found = {pattern: schema.flatten(config)[pattern]}
        for name, value in found.items():
            if value not in allowed:
                raise ValueError(f"config.{name} is {value!r}; allowed: {', '.join(allowed)}")


def reference(
    config: ConfigDict, field: str, value: str, table: str, extra: tuple[str, ...] = ()
) -> None:
    """Checks that `field` names a row of `table`, or one of `extra`."""
    if value not in config[table] and value not in extra:
        known = ", ".join((*extra, *config[table])) or "none"
        raise ValueError(f"config.{field} is {value!r}; config.{table} has {known}")


def rows(config: ConfigDict, table: str, wanted: ConfigDict, maker: str) -> None:
    """Checks that rows have the fields of `wanted`, which `schema.<maker>` made."""
    for name, row in config[table].items():
        if set(row) != set(wanted):
            raise ValueError(
                f"config.{table}.{name} is no row of schema.{maker}(): a config with rows in "
                "`images` is about image classifiers, one without about language models"
            )
