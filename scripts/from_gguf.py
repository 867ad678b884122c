"""Writes the model and tokenizer of a GGUF file as a folder of transformers, for `model.path=`.

python scripts/from_gguf.py MODEL.gguf FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from longspan.config.errors import ConfigError, readable_errors


def main(arguments: list[str]) -> None:
    """Weights are written as float32, as exact as the file's own numbers are."""
    with readable_errors():
        if len(arguments) != 2 or not Path(arguments[0]).is_file():
            raise ConfigError("give a .gguf file that exists, and a folder to write: from_gguf.py MODEL.gguf FOLDER")
        file, folder = Path(arguments[0]), Path(arguments[1])
        try:
            import accelerate  # noqa: F401
            import gguf  # noqa: F401
            import torch
            from transformers import AutoModelForCausalLM, AutoTokenizer
        except ImportError as error:
            raise ConfigError(f"needs transformers 5, gguf and accelerate ({error}): pip install gguf accelerate") from error
        source = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
        model: Any = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
        model.hf_quantizer = None  # the weights are plain numbers by now, and transformers would refuse to write them
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(**source).save_pretrained(folder)
        print(f"Written: {folder}")


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__)
    else:
        main(sys.argv[1:])
