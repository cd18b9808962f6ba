"""`QuantizeWeights`: a TFLite file with weights of 8 or 4 bits that computes in float."""

from __future__ import annotations

from optkit.artifact import Artifact, GraphArtifact, TFLiteArtifact
from optkit.base import ConvertPass
from optkit.context import Context, Setting
from optkit.quantize.stored import (
    check_bits,
    check_stored,
    convert_stored,
    in_more_bits,
    review_file,
)

__all__ = ["QuantizeWeights"]


class QuantizeWeights(ConvertPass):
    """Stores weights in 8 or 4 bits, unpacked before use: a small file that computes in float.

    Use it last, where the size of the file counts and activations should not be rounded. Nothing
    need be calibrated. Kernels get a symmetric scale a channel, tables of embeddings one a row
    (their rows are unpacked as they are looked up). Depthwise convolutions keep 8 bits, or 16 where
    that is smaller, as for kernels of 3 times 3. Shapes that the model leaves open stay open, and
    loops over time stay loops.

    Args:
        bits: Bits of the weights, 8 or 4.

    Example:
        >>> import optkit as ok
        >>> from optkit.testing import digits, small_model
        >>> result = ok.Pipeline([ok.QuantizeWeights(4)]).run(small_model(), digits(samples=400))
        >>> result.artifact.inputs[0].dtype
        dtype('float32')

    References:
        Krishnamoorthi, "Quantizing deep convolutional networks for efficient inference", 2018.
    """

    accepts = GraphArtifact
    produces = TFLiteArtifact

    def __init__(self, bits: int = 8):
        check_bits(bits)
        self.bits = bits

    def check(self, setting: Setting) -> None:
        """Refuses what has no weights, and what does not convert: layers that may not are tried."""
        check_stored(setting, 8 if self.bits == 8 else 4)

    def convert(self, artifact: Artifact, context: Context) -> Artifact:
        """Converts, and stores weights in fewer bits."""
        after, stored = convert_stored(artifact, context, 8 if self.bits == 8 else 4)
        for note in in_more_bits(stored, self.bits):
            context.note(note)
        return after

    def review(self, before: Artifact, after: Artifact, context: Context) -> None:
        """Reads the file back, and times it against a float32 file."""
        review_file(before, after, context)
