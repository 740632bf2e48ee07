"""Zeros of functions: `root`, many of them by `root_many`, and between two bounds."""

from jaxiter.roots.front import root, root_many

__all__ = ["root", "root_many"]
