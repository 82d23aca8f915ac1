"""What run_service.py needs to run all of it on one machine."""
