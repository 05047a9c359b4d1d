"""CPU kernels of the decoder and of its gradients, and the memory allocator."""
