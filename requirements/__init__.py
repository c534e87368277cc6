"""What `make setup` installs: the locks, the models that arrive as packages, and what writes and checks the locks."""
