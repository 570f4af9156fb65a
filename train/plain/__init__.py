"""The plain formulations: what the package's faster forms are checked and timed against."""
