"""The database: its two kinds, its tables, its transactions."""
