"""The one legend of axis names: a role, not a size. A role may have another size in another tower."""

LEGEND: dict[str, str] = {
    "batch": "independent sequences (rows) processed together",
    "seq": "positions of the streaming input (tokens of this call)",
    "slots": "places of a cache: as many as the window, or the capacity asked for",
    "layers": "trips of a repeat, the leading axis of stacked parameters and state",
    "vocab": "rows of the token table",
    "embed": "width of the residual stream",
    "heads": "query heads",
    "kv_heads": "key and value heads; each serves heads / kv_heads query heads",
    "head_dim": "width of one head",
    "value_dim": "width of one value head where it differs from head_dim",
    "mlp": "hidden width of a feed-forward layer",
    "experts": "feed-forward experts of a sparse layer",
    "active": "experts chosen for one token",
    "rows": "(token, chosen expert) pairs sorted by expert",
    "rnn": "width of a recurrence",
    "blocks": "blocks of a block-diagonal matrix",
    "window": "taps of a short convolution",
}
