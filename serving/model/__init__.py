"""What runs a model. Knows Keras, OpenVINO and JAX; never HTTP, never the queue."""
