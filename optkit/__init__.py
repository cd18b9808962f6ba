"""optkit makes Keras models more accurate, smaller and faster, and measures what each step gave.

The public names are loaded on first use, so that ``import optkit`` costs nothing and does not
import TensorFlow.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optkit import testing as testing
    from optkit.ablation import Ablation as Ablation
    from optkit.ablation import Contribution as Contribution
    from optkit.artifact import Artifact as Artifact
    from optkit.artifact import KerasArtifact as KerasArtifact
    from optkit.artifact import SavedModelArtifact as SavedModelArtifact
    from optkit.artifact import TFLiteArtifact as TFLiteArtifact
    from optkit.artifact import load as load
    from optkit.artifact import load_model as load_model
    from optkit.base import ConvertPass as ConvertPass
    from optkit.base import InspectPass as InspectPass
    from optkit.base import Pass as Pass
    from optkit.base import RecipePass as RecipePass
    from optkit.base import RewritePass as RewritePass
    from optkit.base import TrainPass as TrainPass
    from optkit.constraint import Constraint as Constraint
    from optkit.constraint import KeepZeros as KeepZeros
    from optkit.context import Context as Context
    from optkit.context import Setting as Setting
    from optkit.context import State as State
    from optkit.data import Data as Data
    from optkit.errors import ArgumentTypeError as ArgumentTypeError
    from optkit.errors import DataError as DataError
    from optkit.errors import GoalsError as GoalsError
    from optkit.errors import ModelError as ModelError
    from optkit.errors import OptkitError as OptkitError
    from optkit.errors import PassError as PassError
    from optkit.errors import PipelineError as PipelineError
    from optkit.goals import Goal as Goal
    from optkit.goals import Goals as Goals
    from optkit.imaging import AugMix as AugMix
    from optkit.imaging import AutoAugment as AutoAugment
    from optkit.imaging import RandAugment as RandAugment
    from optkit.imaging import RandomErasing as RandomErasing
    from optkit.layerwise import LayerSensitivity as LayerSensitivity
    from optkit.layerwise import Sensitivity as Sensitivity
    from optkit.layerwise import sensitivity as sensitivity
    from optkit.learned import LearnedRanges as LearnedRanges
    from optkit.learning_rate import LearningRateSearch as LearningRateSearch
    from optkit.learning_rate import find_learning_rate as find_learning_rate
    from optkit.measuring import Device as Device
    from optkit.measuring import Measure as Measure
    from optkit.measuring import Measurement as Measurement
    from optkit.measuring import measure as measure
    from optkit.passes.audit_data import AuditData as AuditData
    from optkit.passes.augment import Augment as Augment
    from optkit.passes.augment_text import AugmentText as AugmentText
    from optkit.passes.bn_reestimate import BNReestimate as BNReestimate
    from optkit.passes.compile_xla import CompileXLA as CompileXLA
    from optkit.passes.cut_mix import CutMix as CutMix
    from optkit.passes.fine_tune import FineTune as FineTune
    from optkit.passes.first_that_meets import FirstThatMeets as FirstThatMeets
    from optkit.passes.gradient_accumulation import GradientAccumulation as GradientAccumulation
    from optkit.passes.label_smooth import LabelSmooth as LabelSmooth
    from optkit.passes.lr_schedule import LRSchedule as LRSchedule
    from optkit.passes.mix_up import MixUp as MixUp
    from optkit.passes.mixed_precision import MixedPrecision as MixedPrecision
    from optkit.passes.prune import Prune as Prune
    from optkit.passes.quantize_aware import QuantizeAware as QuantizeAware
    from optkit.passes.quantize_dynamic import QuantizeDynamic as QuantizeDynamic
    from optkit.passes.quantize_float16 import QuantizeFloat16 as QuantizeFloat16
    from optkit.passes.quantize_int8 import QuantizeINT8 as QuantizeINT8
    from optkit.passes.quantize_int16x8 import QuantizeINT16x8 as QuantizeINT16x8
    from optkit.passes.quantize_weights import QuantizeWeights as QuantizeWeights
    from optkit.passes.rebalance import Rebalance as Rebalance
    from optkit.passes.swa import SWA as SWA
    from optkit.passes.transfer_learn import TransferLearn as TransferLearn
    from optkit.pipeline import Pipeline as Pipeline
    from optkit.progress import ProgressEvent as ProgressEvent
    from optkit.recipe import Recipe as Recipe
    from optkit.report import Report as Report
    from optkit.report import Row as Row
    from optkit.result import Result as Result
    from optkit.study import Chart as Chart
    from optkit.study import Study as Study
    from optkit.translate import register_layer as register_layer
    from optkit.workdir import Run as Run

__version__ = "0.1.0"

_HOME = {
    "Ablation": "ablation",
    "Artifact": "artifact",
    "ArgumentTypeError": "errors",
    "AuditData": "passes.audit_data",
    "Augment": "passes.augment",
    "AugmentText": "passes.augment_text",
    "AugMix": "imaging",
    "AutoAugment": "imaging",
    "BNReestimate": "passes.bn_reestimate",
    "Chart": "study",
    "CompileXLA": "passes.compile_xla",
    "Constraint": "constraint",
    "Context": "context",
    "Contribution": "ablation",
    "ConvertPass": "base",
    "CutMix": "passes.cut_mix",
    "Data": "data",
    "DataError": "errors",
    "Device": "measuring",
    "FineTune": "passes.fine_tune",
    "FirstThatMeets": "passes.first_that_meets",
    "Goal": "goals",
    "Goals": "goals",
    "GoalsError": "errors",
    "GradientAccumulation": "passes.gradient_accumulation",
    "InspectPass": "base",
    "KeepZeros": "constraint",
    "KerasArtifact": "artifact",
    "LRSchedule": "passes.lr_schedule",
    "LabelSmooth": "passes.label_smooth",
    "LayerSensitivity": "layerwise",
    "LearnedRanges": "learned",
    "LearningRateSearch": "learning_rate",
    "Measure": "measuring",
    "Measurement": "measuring",
    "MixUp": "passes.mix_up",
    "MixedPrecision": "passes.mixed_precision",
    "ModelError": "errors",
    "OptkitError": "errors",
    "Pass": "base",
    "PassError": "errors",
    "Pipeline": "pipeline",
    "PipelineError": "errors",
    "ProgressEvent": "progress",
    "Prune": "passes.prune",
    "QuantizeAware": "passes.quantize_aware",
    "QuantizeDynamic": "passes.quantize_dynamic",
    "QuantizeFloat16": "passes.quantize_float16",
    "QuantizeINT16x8": "passes.quantize_int16x8",
    "QuantizeINT8": "passes.quantize_int8",
    "QuantizeWeights": "passes.quantize_weights",
    "RandAugment": "imaging",
    "RandomErasing": "imaging",
    "Rebalance": "passes.rebalance",
    "Recipe": "recipe",
    "RecipePass": "base",
    "Report": "report",
    "Result": "result",
    "RewritePass": "base",
    "Row": "report",
    "Run": "workdir",
    "SWA": "passes.swa",
    "SavedModelArtifact": "artifact",
    "Sensitivity": "layerwise",
    "Setting": "context",
    "State": "context",
    "Study": "study",
    "TFLiteArtifact": "artifact",
    "TrainPass": "base",
    "TransferLearn": "passes.transfer_learn",
    "find_learning_rate": "learning_rate",
    "load": "artifact",
    "load_model": "artifact",
    "measure": "measuring",
    "register_layer": "translate",
    "sensitivity": "layerwise",
}

__all__ = [*_HOME, "__version__", "testing"]  # noqa: PLE0604 (names of this table)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(f"optkit.{_HOME[name]}"), name)
    elif name == "testing":
        value = importlib.import_module("optkit.testing")
    else:
        raise AttributeError(f"module 'optkit' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
