"""Goes on with a text, by a trained language model, or writes the target of a source, by an encoder-decoder; what it writes
comes to the terminal as it is chosen.

    longspan-generate checkpoint=RUN prompt="The quick brown"
    longspan-generate checkpoint=RUN prompt=ACGT max_new_tokens=500 temperature=0.8 top_k=5 seed=1

`checkpoint` is a .ckpt file, a run's folder or a folder of save_pretrained. temperature=0 takes the most likely token.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from longspan.config.errors import ConfigError, readable_errors
from longspan.config.overrides import number, split_words
from longspan.config.reachable import told_checkpoint

KEYS = {
    "checkpoint": "a .ckpt file of a run, its folder, or a folder of save_pretrained (required)",
    "prompt": "the text to go on from (required)",
    "max_new_tokens": "tokens to add; unless given 200, or as many as the model was built for",
    "temperature": "1 unless given; 0 takes the most likely token",
    "top_k": "draw among this many tokens only",
    "top_p": "draw among the most likely tokens that together have this probability",
    "seed": "of the draws; 0 unless given",
    "device": "cpu unless given",
}


def main(arguments: Sequence[str] | None = None, program: str = "longspan-generate") -> None:
    """Prints the prompt and what follows it; of an encoder-decoder the target alone, whose source the prompt is.

    Args:
        arguments: the words of the command line; None takes those that were typed.
        program: what was typed before them.
    """
    words = sys.argv[1:] if arguments is None else arguments
    if {"-h", "--help"} & set(words):
        print((__doc__ or "").replace("longspan-generate", program))
        return
    with readable_errors():
        own, others = split_words(words, KEYS)
        for word in others:
            raise ConfigError(f"{word}: {program.split()[-1]} takes {', '.join(KEYS)}, and no other key")
        for key in ("checkpoint", "prompt"):
            if key not in own:
                raise ConfigError(f"{key}=... must be given: {KEYS[key].removesuffix(' (required)')}")
        if not own["prompt"]:
            raise ConfigError("prompt= is empty; give at least one character to go on from")
        if not (Path(own["checkpoint"]).expanduser() / "config.json").is_file():
            own["checkpoint"] = told_checkpoint("checkpoint", own["checkpoint"])
        wanted: dict[str, Any] = {
            key: number(key, own[key]) for key in ("max_new_tokens", "temperature", "top_k", "top_p", "seed") if key in own
        }
        import longspan
        from longspan.tasks import LanguageModelling, SequenceToSequence

        model = longspan.load(own["checkpoint"], device=own.get("device", "cpu"))
        if not isinstance(model.task, (LanguageModelling, SequenceToSequence)):
            fix = "give one trained with task=language_modelling or sequence_to_sequence"
            raise ConfigError(
                f"checkpoint={own['checkpoint']}: its task is {type(model.task).__name__}, which writes no text; {fix}"
            )
        parts = model.stream(own["prompt"], **wanted)
        first = next(parts, "")  # what is wrong is told before anything is written
        told = "" if isinstance(model.task, SequenceToSequence) else own["prompt"]  # a target does not go on from its source
        print(told, end=first, flush=True)
        for part in parts:
            print(part, end="", flush=True)
        print()
