"""The vocabulary that `data.vocabulary` names: a built-in one, `kmers:6`, `bpe:4096`, a file, a folder, a Hub name."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longspan.config.errors import wrong_value
from longspan.data.vocabularies.base import SPECIALS, Vocabulary
from longspan.data.vocabularies.kmers import LARGEST_K, KmerVocabulary
from longspan.data.vocabularies.lookup import BYTES, NUCLEOTIDES, PROTEINS, SOFT_MASKED
from longspan.nearest import did_you_mean, nearest

if TYPE_CHECKING:
    from longspan.data.vocabularies.subwords import SubwordVocabulary, UntrainedBpe

VOCABULARIES: dict[str, Vocabulary] = {known.name: known for known in (BYTES, NUCLEOTIDES, SOFT_MASKED, PROTEINS)}
USUAL_K, USUAL_BPE = 6, 4096
SMALLEST_BPE, LARGEST_BPE = 256 + len(SPECIALS), 2**20
CHOICES = (
    f"{', '.join(VOCABULARIES)}, kmers:{USUAL_K}, bpe:{USUAL_BPE}, a tokenizer.json, or a folder or name of a Hugging Face "
    "tokenizer"
)
_OTHER_NAMES = {
    **dict.fromkeys(("dna", "rna", "bases", "acgt", "genome", "iupac"), "nucleotides"),
    **dict.fromkeys(("aa", "amino_acids", "aminoacids", "peptides"), "proteins"),
    **dict.fromkeys(("text", "utf8", "utf-8", "char", "chars", "characters", "ascii"), "bytes"),
    **dict.fromkeys(("kmer", "k-mer", "k-mers", "6mer"), f"kmers:{USUAL_K}"),
}
TOKENIZER_FILE, SETTINGS_FILE = "tokenizer.json", "tokenizer_config.json"
SPECIAL_KEYS = {"pad": "pad_token", "bos": "bos_token", "mask": "mask_token", "eos": "eos_token"}


def vocabulary(name: str, key: str = "vocabulary") -> Vocabulary | UntrainedBpe:
    """The vocabulary of that name.

    Args:
        key: the config key under `data` that has the name.

    Raises:
        ConfigError: there is none; the message says what may be given.
    """
    if name in VOCABULARIES:
        return VOCABULARIES[name]
    found = check_name(name, key)
    if found == "kmers":
        return KmerVocabulary(_number(name, USUAL_K))
    # only now: the library of tokenizers takes its time to load, and most runs need none
    if found == "bpe":
        from longspan.data.vocabularies.subwords import UntrainedBpe

        return UntrainedBpe(_number(name, USUAL_BPE))
    path = Path(name).expanduser()
    if path.is_dir():
        return _of_folder(name, path, key)
    if path.is_file():
        return _of_file(name, path, key, {})
    return _of_hub(name, key)


def check_name(name: str, key: str = "vocabulary") -> str:
    """Which kind of vocabulary a name means: "bytes", "kmers", "bpe", "file" or "hub"; nothing is read.

    Raises:
        ConfigError: it means none.
    """
    if name in VOCABULARIES:
        return name
    kind, _, number = name.partition(":")
    for known, least, most, what in (("kmers", 1, LARGEST_K, "bases"), ("bpe", SMALLEST_BPE, LARGEST_BPE, "tokens")):
        if kind == known:
            if number and not (number.isdecimal() and least <= int(number) <= most):
                raise wrong_value(f"data.{key}", name, f"give a number of {what} after {known}:, {least} to {most}")
            return known
    if Path(name).expanduser().exists():
        return "file"
    near = (
        _OTHER_NAMES.get(name.lower()) or nearest(name, [*VOCABULARIES, "kmers", "bpe"])
        if len(name) < 12 and "/" not in name
        else None
    )
    if near is not None or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or name.endswith(".json"):
        raise wrong_value(f"data.{key}", name, f"there is no such vocabulary or file; take {CHOICES}.{did_you_mean(near)}")
    return "hub"


def restored(state: Any, where: str) -> Vocabulary:
    """The vocabulary that a checkpoint holds.

    Raises:
        ValueError: what it holds makes none; `where` names the checkpoint.
    """
    from longspan.data.vocabularies.subwords import restored_tokenizer

    if not isinstance(state, Mapping) or state.get("kind") != "tokenizer":
        raise ValueError(f"{where} holds a vocabulary of an unknown kind; give a checkpoint that train.py wrote")
    try:
        return restored_tokenizer(state)
    except ValueError as error:
        raise ValueError(f"{where} holds a vocabulary that cannot be used: {error}") from None


def read_folder(folder: Path) -> SubwordVocabulary:
    """The tokenizer of a folder that `save_pretrained` of this project or of transformers wrote.

    Raises:
        ConfigError: it holds none.
    """
    return _of_folder(str(folder), folder, "vocabulary")


def _number(name: str, usual: int) -> int:
    _, _, number = name.partition(":")
    return int(number) if number else usual


def _of_file(name: str, file: Path, key: str, specials: Mapping[str, str]) -> SubwordVocabulary:
    from longspan.data.vocabularies.subwords import SubwordVocabulary, parsed_tokenizer

    try:
        return SubwordVocabulary(name, parsed_tokenizer(file.read_text(encoding="utf-8")), specials)
    except (OSError, ValueError) as error:
        raise wrong_value(f"data.{key}", name, f"{file} cannot be read as a tokenizer.json: {error}") from None


def _of_folder(name: str, folder: Path, key: str) -> SubwordVocabulary:
    specials = _special_names(folder / SETTINGS_FILE)
    if (folder / TOKENIZER_FILE).is_file():
        return _of_file(name, folder / TOKENIZER_FILE, key, specials)
    return _converted(name, folder, key, f"{folder} has no {TOKENIZER_FILE}")


def _converted(name: str, folder: Path, key: str, why: str) -> SubwordVocabulary:
    """A tokenizer of other files, such as vocab.json and merges.txt, as transformers reads it."""
    from longspan.data.vocabularies.subwords import SubwordVocabulary

    try:
        from transformers import AutoTokenizer

        found = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        tokenizer = found.backend_tokenizer
    except Exception as error:  # the library raises many kinds; each means that there is no tokenizer to be had
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise wrong_value(f"data.{key}", name, f"{why}, and transformers makes none of its files ({said[:200]})") from None
    named = {kind: getattr(found, setting, None) for kind, setting in SPECIAL_KEYS.items()}
    return SubwordVocabulary(name, tokenizer, {kind: str(token) for kind, token in named.items() if token})


def _of_hub(name: str, key: str) -> SubwordVocabulary:
    from longspan.data.readers.hub import hub_reachable

    reachable = hub_reachable()
    try:
        from huggingface_hub import hf_hub_download

        file = Path(hf_hub_download(name, TOKENIZER_FILE, local_files_only=not reachable))
    except Exception as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        where = "the Hub gave none" if reachable else "the Hugging Face Hub cannot be reached and its cache has none"
        raise wrong_value(
            f"data.{key}", name, f"no built-in vocabulary and no file; {where} ({said[:200]}); take {CHOICES}"
        ) from None
    try:
        settings = Path(hf_hub_download(name, SETTINGS_FILE, local_files_only=not reachable))
    except Exception:
        return _of_file(name, file, key, {})  # a tokenizer without settings; its specials go by their usual names
    return _of_file(name, file, key, _special_names(settings))


def _special_names(file: Path) -> dict[str, str]:
    """The names of special tokens in a tokenizer_config.json."""
    try:
        state = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    found = {}
    for kind, key in SPECIAL_KEYS.items():
        token = state.get(key) if isinstance(state, Mapping) else None
        token = token.get("content") if isinstance(token, Mapping) else token  # older files write a token with its rules
        if isinstance(token, str) and token:
            found[kind] = token
    return found
