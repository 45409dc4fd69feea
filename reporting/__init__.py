"""From evaluated runs to an answer: statistics, comparison, tables, figures, the page."""
