"""From the tile IR to the thread stage, and from there to CUDA C++ text."""
