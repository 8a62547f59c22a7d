"""Overrides for a run of one narrow layer, which trains in a fraction of a second."""

TINY = (
    "scale.width=16",
    "scale.depth=1",
    "scale.batch_tokens=256",
    "model.context=64",
    "model.head_size=8",
    "data.held_out_tokens=1024",
)
