"""Speaks HTTP: knows Flask and gunicorn, never Keras."""
