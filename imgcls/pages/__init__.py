"""Pages for people: each one file, without a network, inert whatever names it shows."""
