"""Upload bytes -> RGB uint8 pixels. Knows Pillow, and nothing of queues or models."""
