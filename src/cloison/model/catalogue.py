"""Labels and pools: what there is for qubes to use."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from cloison.errors import CloisonError
from cloison.model import labels
from cloison.model.journal import Journal
from cloison.model.properties import Holder, Property
from cloison.model.volumes import Pool

SYSTEM = -1              # where rows have the number of their qube: none, but the system itself


class Catalogue(Holder):
    def __init__(self, properties: Mapping[str, Property]) -> None:
        super().__init__(properties, Journal(), subject="", owner=SYSTEM)
        self.labels: dict[str, labels.Label] = {}
        self.pools: dict[str, Pool] = {}

    def resolve_label(self, text: str) -> str | None:
        label = labels.find(self.labels, text) or labels.find(self.labels, text.removeprefix("label-"))
        return label.name if label else None

    def add_label(self, name: str, colour: str) -> None:
        index = max([labels.BUILT_IN, *(label.index for label in self.labels.values())]) + 1
        self.journal.put("labels", SYSTEM, self.labels, name, labels.Label(index, colour, name))

    def drop_label(self, name: str) -> None:
        self.journal.drop("labels", SYSTEM, self.labels, name)

    def pool(self, name: str) -> Pool:
        """Raises CloisonError."""
        try:
            return self.pools[name]
        except KeyError:
            raise CloisonError(f"there is no pool {name[:60]!r}") from None

    def put_pool(self, pool: Pool) -> None:
        self.journal.put("pools", SYSTEM, self.pools, pool.name, pool)

    def configure_pool(self, name: str, **config: str) -> None:
        pool = self.pool(name)
        self.put_pool(replace(pool, config={**pool.config, **config}))

    def drop_pool(self, name: str) -> None:
        self.journal.drop("pools", SYSTEM, self.pools, name)
