"""Imports every block kind, so that the registry is whole. A new kind is one file and one line here."""

from compiler.blocks import (  # noqa: F401
    absolute,
    attention,
    conv,
    embed,
    fill,
    latent_attention,
    latest,
    linear,
    mlp,
    moe,
    norm,
    recurrent,
    simple,
    unembed,
)
