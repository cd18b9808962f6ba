"""`QuantizeDynamic`: a TFLite file with weights of 8 or 4 bits that multiplies in integers."""

from __future__ import annotations

from optkit.artifact import Artifact, GraphArtifact, TFLiteArtifact
from optkit.base import ConvertPass
from optkit.context import Context, Setting
from optkit.quantize.stored import (
    check_bits,
    check_stored,
    convert_stored,
    in_more_bits,
    in_words,
    review_file,
)

__all__ = ["QuantizeDynamic"]


class QuantizeDynamic(ConvertPass):
    """Stores weights in 8 or 4 bits, and has kernels quantize activations as they run.

    Use it last, for dense and recurrent models, in which weights outnumber activations: the file is a
    quarter or an eighth of the size, and matrix products run in integers without any calibration.
    The row says how the file compares with a float32 one on this processor.

    Kernels get a symmetric scale a channel, tables of embeddings one a row. What has no integer
    kernel of this kind, or as depthwise convolutions a slow one, computes in float and has its
    weights unpacked before use; the row lists it. Depthwise convolutions keep 8 bits, or 16 where
    that is smaller, as for kernels of 3 times 3. Shapes that the model leaves open stay open, and
    loops over time stay loops.

    Args:
        bits: Bits of the weights, 8 or 4.

    Example:
        >>> import optkit as ok
        >>> from optkit.testing import digits, small_model
        >>> result = ok.Pipeline([ok.QuantizeDynamic()]).run(small_model(), digits(samples=400))
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
        check_stored(setting, 8 if self.bits == 8 else 4, "integer")

    def convert(self, artifact: Artifact, context: Context) -> Artifact:
        """Converts, stores weights in fewer bits, and marks kernels."""
        after, stored = convert_stored(artifact, context, 8 if self.bits == 8 else 4, "integer")
        if stored.unpacked:
            context.note(
                "computed in float, with weights unpacked before use, as integer kernels for them "
                f"are missing or slower: {in_words(stored.unpacked)}"
            )
        for note in in_more_bits(stored, self.bits):
            context.note(note)
        return after

    def review(self, before: Artifact, after: Artifact, context: Context) -> None:
        """Reads the file back, and times it against a float32 file."""
        review_file(before, after, context)
