"""Reports for people: one page of HTML about a checkpoint."""

from hfprune.reporting.page import draw_report, write_report

__all__ = ["draw_report", "write_report"]
