"""Zeros of functions: of systems, of many systems, and of one unknown between two bounds."""

from jaxiter.roots.bracketed import bracketed_root
from jaxiter.roots.front import root, root_many

__all__ = ["bracketed_root", "root", "root_many"]
