"""The libraries of other tools, each an extra of this package, and how they open a database."""

from importlib import import_module
from pathlib import Path
from types import ModuleType
from urllib.parse import quote


def required(module: str, what: str, extra: str | None = None) -> ModuleType:
    """The module that reads a format.

    Args:
        module: its name.
        what: what it reads, for the text of the error.
        extra: the extra of this package that has it; it is called as the module unless given.

    Raises:
        ValueError: it is not installed; names the extra that has it.
    """
    try:
        return import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        raise ValueError(
            f"{what} is read with the package {package}, which is missing ({error}); install it with "
            f"pip install 'hyperp-scaling[{extra or package}]'"
        ) from None


def read_only(path: Path) -> str:
    """The address of an SQLite file for SQLAlchemy, under which a library can change nothing in it."""
    return f"sqlite:///file:{quote(str(path.resolve()))}?mode=ro&uri=true"
