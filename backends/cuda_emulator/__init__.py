"""Runs the CUDA C++ text of kernels on the host, under a checker."""
