"""Asks a trained network about files, recordings and embeddings."""
