"""Vocabularies: between raw bytes and token ids, one a file.

`vocabulary(name)` gives what `data.vocabulary` names; the tokenizers library is loaded where a name asks for it.
"""

from longspan.data.vocabularies.base import INVALID, SPECIALS, OutsideVocabularyError, Vocabulary
from longspan.data.vocabularies.kmers import KmerVocabulary
from longspan.data.vocabularies.lookup import BYTES, LETTERS, NO_SYMBOL, NUCLEOTIDES, PROTEINS, SOFT_MASKED, LookupVocabulary
from longspan.data.vocabularies.named import check_name, restored, vocabulary

__all__ = [
    "BYTES",
    "INVALID",
    "LETTERS",
    "NO_SYMBOL",
    "NUCLEOTIDES",
    "PROTEINS",
    "SOFT_MASKED",
    "SPECIALS",
    "KmerVocabulary",
    "LookupVocabulary",
    "OutsideVocabularyError",
    "Vocabulary",
    "check_name",
    "restored",
    "vocabulary",
]
