"""How the service works, in the order an image meets it: images, job_queue, batching, model; errors below all."""
