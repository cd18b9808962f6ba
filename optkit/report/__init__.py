"""The report: what every pass gave and cost, as text, HTML, JSON, DataFrame, Markdown and plot."""

from optkit.report.report import Report, Row

__all__ = ["Report", "Row"]
