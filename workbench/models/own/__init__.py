"""A user's own networks: found and imported (`modules`), and built like those of the library (`networks`)."""
