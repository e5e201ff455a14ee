"""Imports every op family, so that the registry is whole. A new family is one line here."""

from compiler.ops import (  # noqa: F401
    attention,
    collective,
    control,
    conv,
    elementwise,
    experts,
    leaves,
    linear,
    linear_attend,
    lookup,
    loss,
    normalise,
    pool,
    recurrence,
    rotate,
    rows,
    shape,
    sinusoid,
    state,
)
