"""Reads data exactly as a run would, and says what is in it: a look before hours of training, and no training.

python scripts/prepare_data.py data=addresses
python scripts/prepare_data.py data=text data.path=FOLDER
python scripts/prepare_data.py data=labelling data.path=G.fa data.genes_path=G.bed output=data.json

A malformed file is named with its line and the reason, a setting that cannot work with its key and the fix.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from longspan.config.errors import readable_errors
from longspan.config.overrides import split_words
from longspan.config.own_folder import with_own_folder
from longspan.config.reachable import check_output

CONF = Path(__file__).parents[1] / "conf"
KEYS = {"output": "a JSON file for what is said"}


def main(arguments: list[str]) -> None:
    """Prints sizes, splits and classes of the data, the trivial baselines of its splits, and one batch's shapes."""
    with readable_errors():
        own, words = split_words(with_own_folder(arguments), KEYS)
        from longspan.config.command_line import check_job, readable_words

        if "output" in own:
            check_output("output", own["output"])
        config = check_job(CONF, readable_words(words), elsewhere=True)
        from longspan.training.build import build

        module = build(config, "data")
        module.setup("fit")
        said: dict[str, Any] = {
            "data": module.describe(),
            "baselines": {split: module.baselines(split) for split in ("validation", "test")},
            "batch": {name: _shape(value) for name, value in next(iter(module.train_dataloader())).items()},
            "batches an epoch": len(module.train_dataloader()),
            "tasks": list(module.tasks),
        }
        text = json.dumps(said, indent=2, ensure_ascii=False)
        print(text)
        if "output" in own:
            target = Path(own["output"]).expanduser()
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text + "\n", encoding="utf-8")
            print(f"Written: {own['output']}")


def _shape(value: Any) -> list[int]:
    return list(value.shape) if hasattr(value, "shape") else [len(value)]  # ids and widths are lists


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__)
    else:
        main(sys.argv[1:])
