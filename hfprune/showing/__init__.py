"""How values look: tables, data frames and pictures, from plain numbers and texts."""
