"""What the KV path makes of a link: `make bench-wan`."""
