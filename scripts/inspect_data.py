"""Shows what a run would train on: decoded examples, lengths and label counts, as text and in a picture.

python scripts/inspect_data.py data=addresses
python scripts/inspect_data.py data=pathfinder data.max_train_windows=64 data.max_validation_windows=8 data.max_test_windows=8
python scripts/inspect_data.py experiment=genomic_benchmarks data.path=FOLDER examples=5 output=looked.png

A malformed file is named with its line and the reason, a setting that cannot work with its key and the fix.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from longspan.config.errors import ConfigError, readable_errors
from longspan.config.overrides import split_words
from longspan.config.own_folder import with_own_folder
from longspan.config.reachable import check_output

CONF = Path(__file__).parents[1] / "conf"
KEYS = {"output": "a PNG file for the picture", "examples": "how many examples of each split are shown, 3 unless given"}


def main(arguments: list[str]) -> None:
    """Prints examples, lengths and labels of each split; with `output` draws them."""
    with readable_errors():
        own, words = split_words(with_own_folder(arguments), KEYS)
        from longspan.config.command_line import check_job, readable_words

        if "output" in own:
            if Path(own["output"]).suffix.lower() != ".png":
                raise ConfigError(f"output={own['output']}: the picture is a PNG; give a name that ends in .png")
            check_output("output", own["output"])
        examples = own.get("examples", "3")
        if not (examples.isascii() and examples.isdigit()):
            raise ConfigError(f"examples={examples}: give how many of each split are shown, a whole number from 0")
        config = check_job(CONF, readable_words(words), elsewhere=True)
        from longspan.data.look import drawn, looked, shown
        from longspan.training.build import build

        module: Any = build(config, "data")
        module.setup("fit")
        looks = looked(module, examples=int(examples))
        print(shown(looks))
        if "output" in own:
            target = Path(own["output"]).expanduser()
            target.parent.mkdir(parents=True, exist_ok=True)
            drawn(looks, target)
            print(f"Written: {own['output']}")


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__)
    else:
        main(sys.argv[1:])
