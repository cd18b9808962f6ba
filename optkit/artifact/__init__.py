"""What flows through a pipeline: a model in some form that can predict, be saved and be weighed."""

from optkit.artifact.base import Artifact, Layer
from optkit.artifact.files import load
from optkit.artifact.keras import KerasArtifact
from optkit.artifact.tflite import TFLiteArtifact

__all__ = ["Artifact", "KerasArtifact", "Layer", "TFLiteArtifact", "load"]
