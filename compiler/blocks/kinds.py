"""Imports every block kind, so that the registry is whole. A new kind is one file and one line here."""

from compiler.blocks import absolute, attention, embed, linear, mlp, moe, norm, recurrent, simple, unembed  # noqa: F401
