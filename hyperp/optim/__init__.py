"""Optimizers that hold weight matrices on spheres, for any model; Muon and AdamW beside them."""

from hyperp.optim.adamh import AdamH
from hyperp.optim.adamw import AdamW
from hyperp.optim.base import GroupedOptimizer
from hyperp.optim.groups import TABLE, build, param_groups
from hyperp.optim.muon import Muon
from hyperp.optim.muonh import MuonH
from hyperp.optim.sso import SSO, MuonSphere

__all__ = [
    "SSO",
    "TABLE",
    "AdamH",
    "AdamW",
    "GroupedOptimizer",
    "Muon",
    "MuonH",
    "MuonSphere",
    "build",
    "param_groups",
]
