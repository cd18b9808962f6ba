"""Looking for faults in data: what `AuditData` reports.

`read` goes through a split once and keeps a `Digest` of it; each check is a function of digests.
`audit` does all that is asked for.
"""

from optkit.audit.audit import CHECKS, KINDS, audit
from optkit.audit.finding import Finding
from optkit.audit.near import near_sets, near_vectors
from optkit.audit.reading import Digest, read

__all__ = [
    "CHECKS",
    "KINDS",
    "Digest",
    "Finding",
    "audit",
    "near_sets",
    "near_vectors",
    "read",
]
