"""The data of a run: the splits, in whatever form they came, read batch by batch.

`Data` is what users make. Bound to a model's inputs and outputs it becomes `BoundData`, whose splits
all read the same way, and never hold in memory what did not come in memory.
"""

from optkit.data.arrays import ArraySplit
from optkit.data.class_weight import weigh_by_table, weigh_classes
from optkit.data.given import Data
from optkit.data.split import (
    SPLITS,
    BoundData,
    Split,
    batch_length,
    content_of,
    first_leaf,
    join_leaves,
    map_leaves,
)
from optkit.data.streams import StreamSplit

__all__ = [
    "SPLITS",
    "ArraySplit",
    "BoundData",
    "Data",
    "Split",
    "StreamSplit",
    "batch_length",
    "content_of",
    "first_leaf",
    "join_leaves",
    "map_leaves",
    "weigh_by_table",
    "weigh_classes",
]
