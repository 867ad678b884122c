"""Reads the parent subtypes of a circulating recombinant form of HIV-1 from its name.

`42_BF1` is form 42, of B and F1; `63_02A6` is of form 02 (`02_AG`) and A6, so of A, G and A6. Forms named only `cpx`
(complex) do not tell their parents.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from longspan.config.errors import wrong_value
from longspan.data import bundled as shipped
from longspan.data import settings
from longspan.data.labels import sort_classes
from longspan.data.readers import read_csv
from longspan.data.sources import Columns, Document, rows_to_documents
from longspan.data.vocabularies import NUCLEOTIDES

COMPLEX = "cpx"
_SUBTYPE = re.compile(r"[A-Z]\d?")


def form_number(subtype: str) -> str | None:
    """The number of a recombinant form (`42_BF1` -> "42"), None for a pure subtype (`A1`)."""
    number, joined, _ = subtype.partition("_")
    return number if joined else None


def forms_by_number(subtypes: Iterable[str]) -> dict[str, str]:
    """Number -> what the name says of its parents (`{"42": "BF1", "02": "AG", "06": "cpx"}`)."""
    return {number: subtype.partition("_")[2] for subtype in subtypes if (number := form_number(subtype))}


def parents(made_of: str, forms: Mapping[str, str]) -> frozenset[str]:
    """Parent subtypes of a name's second half, forms within it replaced by their own parents.

    A form within it that is complex itself tells none, and adds none. A run of digits is read two at a time, and where
    their count is odd its last number has three: `07109` is 07 and 109.

    Raises:
        ValueError: the name has something else in it, or a form that is not in `forms`.
    """
    if made_of == COMPLEX:
        return frozenset()
    found: set[str] = set()
    rest = made_of
    while rest:
        if match := _SUBTYPE.match(rest):
            found.add(match[0])
            rest = rest[match.end() :]
            continue
        digits = re.match(r"\d+", rest)
        width = 3 if digits and len(digits[0]) == 3 else 2
        number = rest[:width]
        if number not in forms:
            raise ValueError(f"subtype {made_of!r}: {rest!r} begins with no subtype and no known form")
        found |= parents(forms[number], forms)
        rest = rest[width:]
    return frozenset(found)


@dataclass(frozen=True, kw_only=True)
class Hiv1:
    """562 genomes of 149 recombinant forms that come with the project; forms named `cpx` and pure subtypes are left out.

    A form is never in two splits. A parent in fewer than `min_groups` forms is no class of its own, since it could not
    be in every split; where a parent is itself a `cpx` form, that part adds no label.
    """

    min_groups: int = 4

    def __post_init__(self) -> None:
        settings.whole("min_groups", self.min_groups, 1)

    def labelled(self) -> list[tuple[Document, tuple[str, ...], str]]:
        """Each genome with its parent subtypes and the number of its form."""
        rows = read_csv(shipped.HIV1, "\t")
        forms = forms_by_number(row.values["subtype"] for row in rows)
        kept = [row for row in rows if forms.get(form_number(row.values["subtype"]) or "", COMPLEX) != COMPLEX]
        documents = rows_to_documents(kept, NUCLEOTIDES, Columns("sequence", "accession"))
        return [
            (document, tuple(sorted(parents(forms[str(number)], forms))), str(number))
            for document in documents
            if (number := form_number(document.row.values["subtype"]))
        ]

    def classes(self, labelled: Sequence[tuple[Iterable[str], object]]) -> list[str]:
        """The parents of enough forms, of (parents, form) of each genome.

        Raises:
            ConfigError: there is none.
        """
        forms: dict[str, set] = {}
        for names, form in labelled:
            for name in names:
                forms.setdefault(name, set()).add(form)
        kept = [name for name in sort_classes(forms) if len(forms[name]) >= self.min_groups]
        if not kept:
            raise wrong_value("data.min_groups", self.min_groups, "gives no class; nothing to learn")
        return kept
