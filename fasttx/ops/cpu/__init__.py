"""The kernels in C++ for a CPU, fasttx._C_cpu: launch.py says whether they are here, and how tensors reach them."""
