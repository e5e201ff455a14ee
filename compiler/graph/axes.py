"""The one legend of axis names: a role, not a size. A role may have another size in another tower."""

from compiler.graph.sizes import SEQ, Size

STREAM = "seq"
RECENT = "recent"  # of what the axis of the stream holds the last positions

LEGEND: dict[str, str] = {
    "batch": "independent sequences (rows) processed together",
    "seq": "positions of the streaming input (tokens of this call)",
    "recent": "the last positions of the sequence, where a model computes more of these than of the others",
    "slots": "places of a cache: as many as the window, or the capacity asked for",
    "slot_rows": "rows of a cache whose heads lie side by side: of one slot each, or of a few",
    "lanes": "one such row: the heads of its slots",
    "layers": "trips of a repeat, the leading axis of stacked parameters and state",
    "micro": "micro-batches of a training step, one after the other",
    "chunks": "chunks of positions whose logits are computed one after the other",
    "stages": "stages of a pipeline, each with layers of its own",
    "ticks": "steps of a pipeline: in each, every stage works on one micro-batch",
    "rounds": "how often a micro-batch goes through the stages of a circular pipeline",
    "held": "micro-batches that a stage keeps for its way back",
    "vocab": "rows of the token table",
    "embed": "width of the residual stream",
    "heads": "query heads",
    "kv_heads": "key and value heads; each serves heads / kv_heads query heads",
    "head_dim": "width of one head",
    "value_dim": "width of one value head where it differs from head_dim",
    "latent": "narrow values from which all heads make keys and values",
    "latent_heads": "one: the latents of a cache, which all heads read",
    "query_rank": "narrow values from which queries are made",
    "rotary_dim": "width of the key that knows positions and that all heads share",
    "mlp": "hidden width of a feed-forward layer",
    "experts": "feed-forward experts of a sparse layer",
    "active": "experts chosen for one token",
    "seats": "places of an expert that takes so many tokens of a row",
    "rows": "(token, chosen expert) pairs sorted by expert",
    "pairs": "the same pairs, as an order",
    "groups": "experts, as counts of their rows",
    "rnn": "width of a recurrence",
    "blocks": "blocks of a block-diagonal matrix",
    "window": "taps of a short convolution",
    "hidden": "result of a linear map whose size no dim names",
    "image": "images or videos that belong to one row",
    "frame": "frames of a video",
    "frames": "positions of sound or of other features",
    "height": "rows of an image",
    "width": "columns of an image",
    "channel": "channels of an image, and of what convolutions make of it",
    "patches": "positions of an image in one line",
    "kernel_height": "entries of a convolution's kernel along the height; kernel_<axis> for any other axis",
    "kernel_width": "the same along the width",
    "conv_groups": "groups of channels, each of which a convolution sees alone",
    "distance": "how far a key lies before its query, from 0 on",
    "buckets": "ranges of distances that share a number",
    "positions": "rows of a table of absolute positions",
}


def first_of(axis: str, size: Size) -> Size:
    """The position of the first entry along an axis of so many, in a whole sequence."""
    return SEQ - size if axis == RECENT else Size.of(0)
