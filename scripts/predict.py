"""Labels or scores your own files with a trained model.

    python scripts/predict.py checkpoint=RUN data.path=texts.jsonl output=scores.csv
    python scripts/predict.py checkpoint=... data.path=genome.fa output=genes.bed

`checkpoint` is a .ckpt file, or a run's folder, of which the best is taken. The output's suffix says how it is written:
.csv, .tsv, .jsonl, or .bed for labels along sequences.
"""

from __future__ import annotations

from longspan.inference.commands.predict import main

if __name__ == "__main__":
    main(program="python scripts/predict.py")
