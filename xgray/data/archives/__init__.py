"""Readers of the forms in which people keep Perspective's answers, one module for each form."""
