"""Science: tests of the method's claims, on models small enough to be trained from scratch on a CPU."""
