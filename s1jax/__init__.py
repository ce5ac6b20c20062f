"""s1: Simple test-time scaling, in JAX."""
