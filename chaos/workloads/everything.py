"""The App that the hosts of a storm serve: the town, its zoo, and those that are unruly."""

from chaos.workloads import unruly, zoo
from chaos.workloads.bank import app

__all__ = ["app", "unruly", "zoo"]
