"""Labels or scores your own files with a trained model.

    python scripts/predict.py checkpoint=RUN/checkpoints/best-step200.ckpt data.path=texts.jsonl output=scores.csv
    python scripts/predict.py checkpoint=... data.path=genome.fa output=genes.bed

The file's suffix says how it is written: .csv, .tsv, .jsonl, or .bed for labels along sequences.
"""

from __future__ import annotations

import sys
from pathlib import Path

from longspan.config.errors import ConfigError, readable_errors
from longspan.config.overrides import split_words
from longspan.config.reachable import check_checkpoint, check_output

CONF = Path(__file__).parents[1] / "conf"
KEYS = {
    "checkpoint": "a .ckpt file of a run (required)",
    "output": "the file to write: .csv, .tsv, .jsonl or .bed (required)",
}


def main(arguments: list[str]) -> None:
    """Predicts and writes `output=`."""
    with readable_errors():
        own, words = split_words(arguments, KEYS)
        for key, what in KEYS.items():
            if key not in own:
                raise ConfigError(f"{key}=... must be given: {what.removesuffix(' (required)')}")
        check_checkpoint("checkpoint", own["checkpoint"])
        check_output("output", own["output"])
        from longspan.inference.predict import predict

        rows = predict(own["checkpoint"], words, CONF, own["output"])
        print(f"Written: {own['output']} ({rows} rows)")


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__)
    else:
        main(sys.argv[1:])
