"""NAS-BNN: one binary supernet, its subnets searched (Lin, Wang, Zhang, Chu, Ling 2024, arXiv 2408.15484)."""
