"""The report of a sweep: report/index.html, one file that needs no network."""
