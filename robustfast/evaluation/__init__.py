"""Protocols, metrics and tables: what a trained model is worth."""
