"""BARS: topology and layout searched together by gradient (Zhao, Ning et al. 2020, arXiv 2011.10804).

`search` trains a supernet with its architecture and derives networks, `resume` goes on after a stop.
"""

from bitnas.methods.bars.config import PRESETS, BarsSearchConfig, preset
from bitnas.methods.bars.search import SearchResult, resume, search

__all__ = ["PRESETS", "BarsSearchConfig", "SearchResult", "preset", "resume", "search"]
