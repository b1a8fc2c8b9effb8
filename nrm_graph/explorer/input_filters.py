"""Which inputs the filters of an address leave, as SQL with bound values or with values in it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from nrm_graph.store.read.sql_guard import chosen_inputs
from nrm_graph.store.read.table_queries import literal

if TYPE_CHECKING:
    from nrm_graph.explorer.page import Page

CLASSES = "explorer_classes"
"""Table of the classes' names."""

# Words for a prediction, and whether it is what the label says: null where nobody can know.
_FACTS = """
SELECT i.*, coalesce(c.name, CAST(i.predicted % $last AS VARCHAR)) AS words,
  CASE WHEN NOT $one THEN NULL
       WHEN i.label IN (SELECT name FROM explorer_classes) THEN coalesce(i.label = c.name, false)
       WHEN try_cast(i.label AS BIGINT) IS NOT NULL
       THEN i.label = CAST(i.predicted % $last AS VARCHAR) END AS is_right
FROM (SELECT input_id, key, label, target, predicted, logit, item, {tokens} AS tokens FROM inputs) i
LEFT JOIN explorer_classes c ON c.class = i.predicted % $last
"""


@dataclass(frozen=True)
class InputFilters:
    """The filters of an address.

    Attributes
    ----------
    facts : str
        SELECT of the inputs with their predictions in words and whether these are right.
    conditions : tuple of str
        Over its columns; the address's own condition is none of them.
    own : str
        The condition of the address, or empty.
    params : dict
        Values that both bind.
    classes : pyarrow.Table
        The table :data:`CLASSES`.
    """

    facts: str
    conditions: tuple[str, ...]
    own: str
    params: dict[str, Any]
    classes: pa.Table

    def where(self, *, values: bool = False) -> str:
        """Return all conditions as SQL, with bound values or with the values in it.

        Raises
        ------
        QueryError
            If that of the address is none.
        """
        own = [f"input_id IN ({chosen_inputs(self.own)})"] if self.own.strip() else []
        others = map(self._with_values, self.conditions) if values else self.conditions
        conditions = [*own, *others]
        return f"WHERE {' AND '.join(conditions)}" if conditions else ""

    def source(self) -> str:
        """Return :attr:`facts` as a table that needs no other, the values in it."""
        rows = zip(*(self.classes[name].to_pylist() for name in ("class", "name")), strict=True)
        listed = ", ".join(f"({number}, {literal(name)})" for number, name in rows)
        known = listed or "(CAST(NULL AS BIGINT), CAST(NULL AS VARCHAR))"
        names = f"WITH {CLASSES}(class, name) AS (VALUES {known})"
        return f"({names}\n{self._with_values(self.facts).strip()})"

    def _with_values(self, query: str) -> str:
        def value(name: re.Match[str]) -> str:
            bound = self.params[name[1]]
            return literal(bound) if isinstance(bound, str) else str(bound)

        return re.sub(r"\$(\w+)", value, query)


def filters_of(page: Page) -> InputFilters:
    """Return the filters of a page's address."""
    address, db = page.address, page.db
    names, outputs = db.classes or (), db.outputs.parts
    last = next((shape[-1] for _, shape in outputs if shape), 1)
    one = len(outputs) == 1
    if not one or len(names) > last:  # as Outputs.text has it: then no class is known
        names, last = (), last if one else db.outputs.count
    known = [i for i, name in enumerate(names) if name]  # not a whole vocabulary
    # Of several axes the strongest output is at one place, the label of none in particular.
    flat = one and len(outputs[0][1]) == 1
    params: dict[str, Any] = {"last": max(1, last), "one": flat}
    conditions = []
    for name, column in (("label", "label"), ("prediction", "words")):
        if value := getattr(address, name):
            conditions.append(f"{column} = ${name}")
            params[name] = value
    if address.outcome:
        conditions.append("is_right" if address.outcome == "right" else "NOT is_right")
    if address.text:
        texts = ("key", "label", "array_to_string(tokens, ' ')")
        found = [f"contains(lower(coalesce({text}, '')), lower($text))" for text in texts]
        conditions.append(f"({' OR '.join(found)})")
        params["text"] = address.text
    stored = db._snapshot.fields.types.get("tokens") == "strings"
    return InputFilters(
        _FACTS.format(tokens='"tokens"' if stored else "CAST(NULL AS VARCHAR[])"),
        tuple(conditions),
        address.where,
        params,
        pa.table(
            {
                "class": pa.array(known, pa.int64()),
                "name": pa.array([names[i] for i in known], pa.string()),
            }
        ),
    )
