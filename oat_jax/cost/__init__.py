"""What a program costs on a chip: FLOPs, bytes, exchanges, and the chips' peak figures."""
