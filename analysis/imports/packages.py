"""The libraries of other tools, each an extra of this package, and how they open a database."""

from importlib import import_module
from pathlib import Path
from types import ModuleType
from urllib.parse import quote

EXTRAS = {"sqlalchemy": "optuna"}  # other extras are called as the module is


def required(module: str, what: str) -> ModuleType:
    """The module that reads a format.

    Raises:
        ValueError: it is not installed; names the extra that has it.
    """
    try:
        return import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        extra = EXTRAS.get(package, package)
        raise ValueError(
            f"{what} is read with the package {package}, which is missing ({error}); install it with "
            f"pip install 'hyperp-scaling[{extra}]'"
        ) from None


def read_only(path: Path) -> str:
    """The address of an SQLite file for SQLAlchemy, under which a library can change nothing in it."""
    return f"sqlite:///file:{quote(str(path.resolve()))}?mode=ro&uri=true"
