"""Tenants, datasets, schemas and policies."""
