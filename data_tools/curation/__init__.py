"""A pool of training rows -> a small training set, with a reason for every row that is left out."""
