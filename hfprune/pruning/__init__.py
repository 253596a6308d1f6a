"""Pruning: rounds of scoring, planning, surgery and reconstruction, and each of these steps on its own."""
