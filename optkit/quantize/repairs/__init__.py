"""Repairs of Keras models before they are quantized: other weights, the same outputs."""

from optkit.quantize.repairs.balance import balance
from optkit.quantize.repairs.bench import Repaired
from optkit.quantize.repairs.equalization import equalize
from optkit.quantize.repairs.fold import fold_batch_norms

__all__ = ["Repaired", "balance", "equalize", "fold_batch_norms"]
