"""The report of a sweep: report/index.html, one file that needs no network."""

from diffusion.report.write import write_report

__all__ = ["write_report"]
