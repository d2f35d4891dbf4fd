"""The figures and tables of the paper, by name, and what goes beyond them."""

from skeletal.core.choices import named
from skeletal.study.items import accuracy, contenders, steps, structure, tables
from skeletal.study.paper.item import Item


def _order(item: Item) -> tuple[bool, int]:
    return item.name.startswith("table"), int("".join(filter(str.isdigit, item.name)))


_PAPER = sorted((*accuracy.ITEMS, *steps.ITEMS, *structure.ITEMS, *tables.ITEMS), key=_order)
ITEMS: dict[str, Item] = {item.name: item for item in (*_PAPER, *contenders.ITEMS)}


def items_named(names: tuple[str, ...]) -> list[Item]:
    """Return the items with these names, or all without any. Raises ValueError for a name that does not exist."""
    found = [named("item", name, ITEMS) for name in names]
    return [ITEMS[name] for name in dict.fromkeys(found or ITEMS)]
