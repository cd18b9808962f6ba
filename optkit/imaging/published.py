"""The policies that AutoAugment's authors found and published.

Each line is a sub-policy: two operations, each with the probability that it acts, and its magnitude
from 0 to 9 (operations without an amount have none). Some stand there twice: so they do in the paper.
"""

from __future__ import annotations

__all__ = ["POLICIES", "Step", "parsed"]

#: An operation, its probability, its strength from 0 to 1.
Step = tuple[str, float, float]

_CIFAR10 = """
Invert 0.1, Contrast 0.2 6
Rotate 0.7 2, TranslateX 0.3 9
Sharpness 0.8 1, Sharpness 0.9 3
ShearY 0.5 8, TranslateY 0.7 9
AutoContrast 0.5, Equalize 0.9
ShearY 0.2 7, Posterize 0.3 7
Color 0.4 3, Brightness 0.6 7
Sharpness 0.3 9, Brightness 0.7 9
Equalize 0.6, Equalize 0.5
Contrast 0.6 7, Sharpness 0.6 5
Color 0.7 7, TranslateX 0.5 8
Equalize 0.3, AutoContrast 0.4
TranslateY 0.4 3, Sharpness 0.2 6
Brightness 0.9 6, Color 0.2 8
Solarize 0.5 2, Invert 0.0
Equalize 0.2, AutoContrast 0.6
Equalize 0.2, Equalize 0.6
Color 0.9 9, Equalize 0.6
AutoContrast 0.8, Solarize 0.2 8
Brightness 0.1 3, Color 0.7 0
Solarize 0.4 5, AutoContrast 0.9
TranslateY 0.9 9, TranslateY 0.7 9
AutoContrast 0.9, Solarize 0.8 3
Equalize 0.8, Invert 0.1
TranslateY 0.7 9, AutoContrast 0.9
"""

_IMAGENET = """
Posterize 0.4 8, Rotate 0.6 9
Solarize 0.6 5, AutoContrast 0.6
Equalize 0.8, Equalize 0.6
Posterize 0.6 7, Posterize 0.6 6
Equalize 0.4, Solarize 0.2 4
Equalize 0.4, Rotate 0.8 8
Solarize 0.6 3, Equalize 0.6
Posterize 0.8 5, Equalize 1.0
Rotate 0.2 3, Solarize 0.6 8
Equalize 0.6, Posterize 0.4 6
Rotate 0.8 8, Color 0.4 0
Rotate 0.4 9, Equalize 0.6
Equalize 0.0, Equalize 0.8
Invert 0.6, Equalize 1.0
Color 0.6 4, Contrast 1.0 8
Rotate 0.8 8, Color 1.0 2
Color 0.8 8, Solarize 0.8 7
Sharpness 0.4 7, Invert 0.6
ShearX 0.6 5, Equalize 1.0
Color 0.4 0, Equalize 0.6
Equalize 0.4, Solarize 0.2 4
Solarize 0.6 5, AutoContrast 0.6
Invert 0.6, Equalize 1.0
Color 0.6 4, Contrast 1.0 8
Equalize 0.8, Equalize 0.6
"""

_LARGEST = 9


def parsed(text: str) -> tuple[tuple[Step, Step], ...]:
    """Sub-policies, as steps.

    >>> parsed("Invert 0.1, Contrast 0.2 9")
    ((('Invert', 0.1, 0.0), ('Contrast', 0.2, 1.0)),)
    """

    def step(words: list[str]) -> Step:
        magnitude = int(words[2]) if len(words) > 2 else 0
        return words[0], float(words[1]), magnitude / _LARGEST

    found = []
    for line in text.strip().splitlines():
        first, second = (step(part.split()) for part in line.split(","))
        found.append((first, second))
    return tuple(found)


#: The sub-policies by the data that they were found on.
POLICIES = {"cifar10": parsed(_CIFAR10), "imagenet": parsed(_IMAGENET)}
