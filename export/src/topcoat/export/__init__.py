"""Topcoat."""
