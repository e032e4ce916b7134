"""Training: stages are data (`stages`), one loop (`loop`), a pure objective (`objective`)."""
