"""The libraries of other tools, each an extra of this package."""

from importlib import import_module
from types import ModuleType

EXTRAS = {"wandb": "wandb", "tensorboard": "tensorboard", "mlflow": "mlflow", "optuna": "optuna"}


def required(module: str, what: str) -> ModuleType:
    """The module that reads a format.

    Raises:
        ValueError: it is not installed; names the extra that has it.
    """
    try:
        return import_module(module)
    except ImportError as error:
        extra = EXTRAS[module.split(".")[0]]
        raise ValueError(
            f"{what} is read with the package {extra}, which is missing ({error}); install it with "
            f"pip install 'hyperp-scaling[{extra}]'"
        ) from None
