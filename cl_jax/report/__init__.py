"""From the results table to what a person reads: a summary, tables for a paper, figures, one HTML page."""

from cl_jax.report.page import write_page, write_report
from cl_jax.report.summary import SummaryRow, summary
from cl_jax.report.tables import render_table

__all__ = ["SummaryRow", "render_table", "summary", "write_page", "write_report"]
