"""`QuantizeINT16x8`: a TFLite file of integers with activations of 16 bits."""

from __future__ import annotations

from typing import Any

from optkit import _validate
from optkit.artifact import Artifact, GraphArtifact, TFLiteArtifact
from optkit.base import ConvertPass
from optkit.context import Context, Setting
from optkit.convert import Samples, convert
from optkit.errors import OptkitError, PipelineError
from optkit.lookups import split_lookups
from optkit.models import signature
from optkit.quantize import (
    FloatFile,
    Scheme,
    calibrate,
    float_file,
    float_operations,
    quantize,
)
from optkit.quantize.sources import (
    always_converts,
    check_input_shape,
    compare_ranges,
    input_shapes,
    leaves_of,
    require_exact_masks,
    require_shapes,
    to_calibrate_on,
)
from optkit.quantize.stored import in_words, review_file, set_beside
from optkit.quantize.weights import store_weights

__all__ = ["QuantizeINT16x8"]

_SCHEME = Scheme(weights=8, activations=16)


class QuantizeINT16x8(ConvertPass):
    """Quantizes weights to 8 bits and activations to 16: integers where 8 bits lose too much.

    Use it last, for processors and accelerators without floats whose accuracy suffers from 8-bit
    activations. The file is as small as that of `QuantizeINT8`, and nearly as accurate as the
    float model. On common processors its kernels are plain loops, many times slower than those for
    floats: the row says how many times on this one.

    Weights get a scale a channel; the range of every activation is measured on calibration samples.
    Operators without such kernels stay float, and the row lists them. Shapes that the model leaves
    open stay open, but recurrent layers are unrolled and need a fixed number of steps.

    Args:
        calibration_samples: Samples to calibrate on, at least 1, drawn from ``calibration``, else
            from ``train`` (of streams the first ones), else from ``validation``.
        io: Type of the file's input and output: ``"int16"``, or ``"float32"`` for callers that
            cannot quantize themselves. Whole-number inputs (token ids) stay what they are.
        input_shape: Shape of one input without the batch, for a model that leaves sizes or lengths
            open, to fix them: ``(96, 96, 3)``; for several such inputs a dict by name.

    Example:
        >>> import optkit as ok
        >>> from optkit.testing import digits, small_model
        >>> result = ok.Pipeline([ok.QuantizeINT16x8()]).run(small_model(), digits(samples=400))
        >>> result.artifact.inputs[0].dtype
        dtype('int16')

    References:
        Krishnamoorthi, "Quantizing deep convolutional networks for efficient inference", 2018.
        Done by ai-edge-quantizer.
    """

    accepts = GraphArtifact
    produces = TFLiteArtifact

    def __init__(
        self,
        calibration_samples: int = 200,
        *,
        io: str = "int16",
        input_shape: tuple[int, ...] | list[int] | dict[str, Any] | None = None,
    ):
        _validate.integer("calibration_samples", calibration_samples, minimum=1)
        _validate.one_of("io", io, ("int16", "float32"))
        check_input_shape(input_shape)
        self.calibration_samples = calibration_samples
        self.io = io
        self.input_shape = input_shape

    @property
    def needs(self) -> tuple[str, ...]:
        """Something to calibrate on."""
        return ("calibration",)

    def check(self, setting: Setting) -> None:
        """Refuses shapes that do not fit, and what does not convert, which is tried out."""
        model = setting.model
        if model is None:
            return
        require_exact_masks(model, floats_in=self.io == "float32")
        split = split_lookups(model)
        described = signature(model)
        rest = described if split is None else signature(split.rest)
        shapes = input_shapes(self.input_shape, rest, required=None)
        sample = leaves_of(next(setting.data.calibration_split().single_inputs(1, 0)), described)
        if split is None:
            require_shapes(sample, described, shapes)
            if always_converts(model):
                return
        try:
            made, _ = _quantized(model, lambda: iter([sample, sample]), shapes, self.io)
            names = [info.name for info in described.inputs]
            made.predict(dict(zip(names, sample, strict=True)))
        except OptkitError as error:
            opened = [info.name for info in rest.variable_inputs if info.name not in shapes]
            advice = (
                f" Inputs {opened} leave sizes open, which recurrent layers cannot in a file of "
                "integers: pass `input_shape=…`, the shape of one sample without the batch."
                if opened
                else ""
            )
            raise PipelineError(
                f"Model {model.name!r} was tried out and does not convert: {error}{advice}"
            ) from error

    def convert(self, artifact: Artifact, context: Context) -> Artifact:
        """Calibrates and quantizes."""
        source, samples, shapes = to_calibrate_on(
            artifact, context, self.calibration_samples, self.input_shape, required=None
        )
        after, file = _quantized(source, samples, shapes, self.io)
        for note in (*samples.notes(), *file.notes):
            context.note(note)
        if left := in_words(float_operations(after.content)):
            context.note(f"computed in float, as 16 bits have no kernels for them: {left}")
        # What it is held against for speed: the float file as it would be deployed, with its loops.
        set_beside(after, lambda: convert(source, input_shapes=shapes).artifact)
        return after

    def review(self, before: Artifact, after: Artifact, context: Context) -> None:
        """Reads the file back, times it against a float32 file, and looks at calibration data."""
        split = context.data.calibration_split()
        if split.name == "calibration" and (note := compare_ranges(split, context.data.train)):
            context.note(note)
        review_file(before, after, context)


def _quantized(
    source: Any, samples: Samples, shapes: dict[str, tuple[int, ...]], io: str
) -> tuple[TFLiteArtifact, FloatFile]:
    file = float_file(source, shapes)
    ranges = calibrate(file, file.behind(samples))
    # Tables would be stored in 16 bits, as what is looked up in them are activations.
    tables = {item.index for item in file.operations if item.kind == "GATHER" and item.weights}
    content = quantize(
        file,
        ranges,
        scheme=_SCHEME,
        keep_float=tables,
        io="float32" if io == "float32" else "int8",
    )
    stored = store_weights(file.finish(content), 8, computes="integer")
    return TFLiteArtifact(stored.content, front=file.front), file
