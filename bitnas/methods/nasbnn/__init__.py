"""NAS-BNN: one binary supernet, its subnets searched (Lin, Wang, Zhang, Chu, Ling 2024, arXiv 2408.15484).

`search` trains the supernet and finds subnets, `resume` goes on after a stop.
"""

from bitnas.methods.nasbnn.config import PRESETS, NasBnnSearchConfig, preset
from bitnas.methods.nasbnn.search import SearchResult, resume, search

__all__ = ["PRESETS", "NasBnnSearchConfig", "SearchResult", "preset", "resume", "search"]
