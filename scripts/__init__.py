"""The commands of the README and what they stand on: environment, host, client, browser."""
