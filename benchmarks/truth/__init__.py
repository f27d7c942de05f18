"""Inputs whose right values are known: what real systems send, and what a monitor is apt to make of it."""
