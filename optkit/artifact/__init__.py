"""What flows through a pipeline: a model in some form that can predict, be saved and be weighed."""

from optkit.artifact.base import Artifact, GraphArtifact, Layer
from optkit.artifact.files import load, load_model
from optkit.artifact.keras import KerasArtifact, TreatedArtifact
from optkit.artifact.saved_model import SavedModelArtifact
from optkit.artifact.tflite import TFLiteArtifact

__all__ = [
    "Artifact",
    "GraphArtifact",
    "KerasArtifact",
    "Layer",
    "SavedModelArtifact",
    "TFLiteArtifact",
    "TreatedArtifact",
    "load",
    "load_model",
]
