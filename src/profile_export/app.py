"""Composition root: knows every room, holds no logic."""
