"""The report as one HTML page: page.py fills the template, style and script beside it."""
