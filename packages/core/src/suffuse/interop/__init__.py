"""Other libraries' models as our denoisers, and our samplers inside other libraries' pipelines."""
