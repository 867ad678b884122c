"""Labels or scores your own files with a trained model.

    longspan-predict checkpoint=RUN data.path=texts.jsonl output=scores.csv
    longspan-predict checkpoint=... data.path=genome.fa output=genes.bed

`checkpoint` is a .ckpt file, or a run's folder, of which the best is taken. The output's suffix says how it is written:
.csv, .tsv, .jsonl, or .bed for labels along sequences.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from longspan.config.errors import ConfigError, readable_errors
from longspan.config.folder import conf_folder
from longspan.config.overrides import split_words
from longspan.config.reachable import check_output, told_checkpoint

KEYS = {
    "checkpoint": "a .ckpt file of a run, or its folder (required)",
    "output": "the file to write: .csv, .tsv, .jsonl or .bed (required)",
}


def main(arguments: Sequence[str] | None = None, program: str = "longspan-predict") -> None:
    """Predicts and writes `output=`.

    Args:
        arguments: the words of the command line; None takes those that were typed.
        program: what was typed before them.
    """
    words = sys.argv[1:] if arguments is None else arguments
    if {"-h", "--help"} & set(words):
        print((__doc__ or "").replace("longspan-predict", program))
        return
    with readable_errors():
        own, others = split_words(words, KEYS)
        for key, what in KEYS.items():
            if key not in own:
                raise ConfigError(f"{key}=... must be given: {what.removesuffix(' (required)')}")
        own["checkpoint"] = told_checkpoint("checkpoint", own["checkpoint"])
        check_output("output", own["output"])
        from longspan.inference.predict import predict

        rows = predict(own["checkpoint"], others, conf_folder(), own["output"])
        print(f"Written: {own['output']} ({rows:,} row{'' if rows == 1 else 's'})")
