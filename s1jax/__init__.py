"""s1: Simple test-time scaling (arXiv 2501.19393) in JAX. Import the modules by name; nothing is re-exported here."""
