"""One place a variant: attention/NAME.py is attention=NAME, and its config states the defaults that the file has."""

import ast
import importlib
import pkgutil
from pathlib import Path

import pytest
from hydra.utils import get_object
from omegaconf import OmegaConf

import longspan.attention as variants
import longspan_kernels
from longspan.attention.named import PLACE, variant_named, variant_names
from longspan.parameters import parameters

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf" / "attention"
SOURCE = ROOT / "src" / "longspan"
NAMED = [path.stem for path in sorted(CONF.glob("*.yaml")) if "_target_" in OmegaConf.load(path)]


def module_of(name):
    return f"longspan.attention.{'global_' if name == 'global' else name}"


@pytest.mark.parametrize("name", NAMED)
def test_a_config_states_the_defaults_of_its_file(name):
    config = OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml"))
    target = get_object(config.pop("_target_"))
    assert config.pop("_partial_") is True
    assert target is variant_named(name, "")
    own = importlib.import_module(module_of(name))
    assert target.__module__ == own.__name__ or target.__module__.startswith(f"{own.__name__}.")
    settings = {k: p.default for k, p in parameters(target).items() if k not in PLACE}
    assert config == {k: list(v) if isinstance(v, tuple) else v for k, v in settings.items()}
    first = (CONF / f"{name}.yaml").read_text().splitlines()
    assert f"python train.py attention={name}" in first[0]


def test_every_variant_has_a_config():
    assert set(variant_names()) == set(NAMED)


def test_names_stay_callable_once_their_files_are_imported():
    for name in variant_names():
        importlib.import_module(module_of(name))
        assert callable(getattr(variants, "global_" if name == "global" else name))


@pytest.mark.parametrize("room", ["attention", "models"])
def test_only_public_names_of_the_kernels_are_imported(room):
    public = {"longspan_kernels"} | {
        f"longspan_kernels.{found.name}" for found in pkgutil.iter_modules(longspan_kernels.__path__) if found.ispkg
    }
    for path in sorted((SOURCE / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                asked = [(alias.name, None) for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                asked = [(str(node.module), alias.name) for alias in node.names]
            else:
                continue
            for module, name in asked:
                if module.startswith("longspan_kernels"):
                    assert module in public, f"{path.name} imports {module}; a package of the kernels is public, not its files"
                    assert name is None or name in importlib.import_module(module).__all__, f"{path.name}: {module}.{name}"
