"""What views draw from: the address, the stores, and measures that are remembered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nrm_graph.database import Database
    from nrm_graph.explorer.address import Address
    from nrm_graph.explorer.answers import Answers


@dataclass(frozen=True)
class Page:
    """One state of the page.

    Attributes
    ----------
    address : Address
        What is looked at.
    stores : tuple of Database
        One store, or two to compare.
    answers : Answers
        Remembers what was computed.
    """

    address: Address
    stores: tuple[Database, ...]
    answers: Answers

    @property
    def db(self) -> Database:
        """The store that is looked at."""
        return self.stores[min(self.address.store, len(self.stores) - 1)]

    def target_of(self, identity: int) -> str:
        """Target of an input as the address names it: empty where its key has no other."""
        entry = self.db._snapshot.entries[identity]
        return "" if len(self.db._snapshot.by_key[entry.key]) == 1 else str(entry.aim)

    def href(self, **values: Any) -> str:
        """Link to this page with other values in its address."""
        return self.address.changed(**values).query_text()
