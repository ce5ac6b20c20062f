"""Makers of data: the quickstart's world and its base model, and curation."""
