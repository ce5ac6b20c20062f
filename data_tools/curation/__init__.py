"""Curation: a pool of training rows -> a small training set, and a reason for each rejected row."""
