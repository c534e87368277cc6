"""What tests share: a stub server, tiny models and projects, made-up tables and runs. Benchmarks use it too."""
