"""`QuantizeFloat16`: a TFLite file with weights of 16 bits."""

from __future__ import annotations

from optkit.artifact import Artifact, GraphArtifact, TFLiteArtifact
from optkit.base import ConvertPass
from optkit.context import Context, Setting
from optkit.quantize.stored import check_stored, convert_stored, review_file

__all__ = ["QuantizeFloat16"]


class QuantizeFloat16(ConvertPass):
    """Stores weights as float16: half the size, and the same predictions to three digits.

    Use it last, where no accuracy may be lost. The file computes in float32: LiteRT unpacks the
    weights when it loads the file (some GPUs compute with them as they are), so that memory and
    speed are those of a float32 file. Shapes that the model leaves open stay open, and loops over
    time stay loops. Weights above 65504, which float16 does not hold, stay float32, and the row says
    so.

    Example:
        >>> import optkit as ok
        >>> from optkit.testing import digits, small_model
        >>> result = ok.Pipeline([ok.QuantizeFloat16()]).run(small_model(), digits(samples=400))
        >>> result.artifact.inputs[0].dtype
        dtype('float32')

    References:
        IEEE 754-2008, binary16.
    """

    accepts = GraphArtifact
    produces = TFLiteArtifact

    def check(self, setting: Setting) -> None:
        """Refuses what has no weights, and what does not convert: layers that may not are tried."""
        check_stored(setting, 16)

    def convert(self, artifact: Artifact, context: Context) -> Artifact:
        """Converts, and stores weights as float16."""
        return convert_stored(artifact, context, 16)[0]

    def review(self, before: Artifact, after: Artifact, context: Context) -> None:
        """Reads the file back, and times it against a float32 file."""
        review_file(before, after, context)
