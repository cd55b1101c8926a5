"""Figures, a name each (`all`), and how they look (`drawing`)."""
