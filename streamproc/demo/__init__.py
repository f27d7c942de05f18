"""The demo: a live model, a fault in its features, and the worker that tells."""
