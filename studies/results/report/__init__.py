"""The page about a study: `equisearch report`."""

from studies.results.report.page import write_report

__all__ = ["write_report"]
