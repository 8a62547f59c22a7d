"""Arguments of the optimizer classes: the fields of a rule, and what all optimizer classes share.

Every argument stands once, with its type, default and explanation: a hyperparameter in the dataclass of its
rule, a shared argument in `OptimizerArguments`. A dataclass that inherits from both describes a whole
constructor, and `takes_arguments` gives an optimizer class that constructor::

    @dataclass(frozen=True)
    class MuonArguments(OptimizerArguments, MuonRule):
        lr: LearningRate = 2e-2

    class Muon(GroupedOptimizer):
        @takes_arguments(MuonArguments)
        def __init__(self, arguments: MuonArguments) -> None:
            super().__init__(**arguments.for_groups())

`help(Muon)` and `inspect.signature(Muon)` then name every argument, and so do type checkers.
"""

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Concatenate, ParamSpec, TypeVar

from torch import nn
from torch.distributed import ProcessGroup

from hyperp.optim.groups import TABLE, param_groups
from hyperp.optim.rule import RULES, Rule, option_names
from hyperp.roles import Role

LearningRate = float | Mapping[Role, float]

Fields = ParamSpec("Fields")
Arguments = TypeVar("Arguments")
Optimizer = TypeVar("Optimizer")


@dataclass(frozen=True, kw_only=True)
class OptimizerArguments(Rule):
    """What every optimizer class takes besides the hyperparameters of its rule.

    Args:
        params: a module, whose parameters are grouped by role, or what any torch optimizer takes: tensors,
            (name, tensor) pairs or parameter groups.
        options: hyperparameters of the other algorithms, such as {"adamw": {"weight_decay": 0.1}}.
        unembedding: the output modules of a module that does not declare its roles.
        maximize: ascend instead of descending.
        process_group: the ranks among which to divide the matrices that every rank holds, as under DDP.
    """

    params: nn.Module | Iterable[Any] = field(kw_only=False)
    lr: LearningRate = field(kw_only=False)
    options: Mapping[str, Mapping[str, Any]] | None = None
    unembedding: Iterable[nn.Module] = ()
    maximize: bool = False
    process_group: ProcessGroup | None = None

    def for_groups(self) -> dict[str, Any]:
        """Arguments of `GroupedOptimizer`. A module becomes parameter groups by the rule's row of `TABLE`.

        Raises ValueError if `options` has the rule's own, for rates by role without a module, and for what
        `param_groups` refuses.
        """
        if self.name in (self.options or {}):
            raise ValueError(
                f"options must not have {self.name}: its options are arguments of the class itself"
            )
        own = {name: getattr(self, name) for name in option_names(RULES[self.name])}
        options = {**(self.options or {}), self.name: own}
        params = self.params
        if isinstance(params, nn.Module):
            table = TABLE[self.name]
            params = param_groups(
                params, lr=self.lr, algorithms=table, options=options, unembedding=self.unembedding
            )
        elif isinstance(self.lr, Mapping):
            raise ValueError("lr must be one number unless params is a module, whose parameters have roles")
        return {
            "params": params,
            "lr": max(self.lr.values()) if isinstance(self.lr, Mapping) else self.lr,
            "algorithm": self.name,
            "options": options,
            "maximize": self.maximize,
            "process_group": self.process_group,
        }


def takes_arguments(
    arguments: Callable[Fields, Arguments],
) -> Callable[[Callable[[Optimizer, Arguments], None]], Callable[Concatenate[Optimizer, Fields], None]]:
    """Decorate `__init__(self, arguments)` so that callers pass the fields of the dataclass `arguments`.

    The decorated `__init__` has the signature of the dataclass, and its explanations as docstring.
    """

    def decorate(
        init: Callable[[Optimizer, Arguments], None],
    ) -> Callable[Concatenate[Optimizer, Fields], None]:
        def init_from_fields(self: Optimizer, /, *args: Fields.args, **kwargs: Fields.kwargs) -> None:
            init(self, arguments(*args, **kwargs))

        taken = inspect.signature(arguments).parameters
        self_parameter = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
        explained = argument_docs(arguments)
        described = {
            "__signature__": inspect.Signature([self_parameter, *taken.values()]),
            "__doc__": "Args:\n" + "\n".join(explained.get(name, f"    {name}") for name in taken),
            "__name__": init.__name__,
            "__qualname__": init.__qualname__,
            "__module__": init.__module__,
        }
        for name, value in described.items():
            setattr(init_from_fields, name, value)
        # Python names this function where an argument is missing or unknown.
        setattr(getattr(arguments, "__init__"), "__qualname__", init.__qualname__)  # noqa: B009, B010
        return init_from_fields

    return decorate


def argument_docs(described: Any) -> dict[str, str]:
    """The entries of the `Args:` sections in the docstrings of a class and its bases, by argument."""
    found: dict[str, str] = {}
    for base in reversed(described.__mro__):
        section = inspect.cleandoc(base.__doc__ or "").partition("Args:\n")[2].partition("\n\n")[0]
        for entry in re.split(r"\n(?=    \w)", section):
            found[entry.strip().partition(":")[0]] = entry.rstrip()
    return found
